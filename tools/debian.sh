# shellcheck shell=sh
# Functions for scripts that use packages of Debian: `. tools/debian.sh`.

# install_tools PACKAGE...: install packages on this machine, or show the command.
install_tools() {
    if [ "$(id -u)" != 0 ]; then
        echo "missing tools: apt install $*"
        exit 1
    fi
    apt-get -q update
    apt-get -q -y --no-install-recommends install "$@"
}

# configure_apt FOLDER RELEASE deb|deb-src [ARCHITECTURE]: apt-get then knows this release of Debian
# alone, believes that nothing is installed, and downloads to FOLDER/archives. Call it in a
# subshell.
configure_apt() {
    rm -rf "$1"
    mkdir -p "$1/lists/partial" "$1/archives/partial"
    : > "$1/status"
    cat > "$1/sources.list" << END
$3 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $2 main
END
    architecture=${4-$(dpkg --print-architecture)}
    cat > "$1/apt.conf" << END
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
Dir::State "$1";
Dir::State::status "$1/status";
Dir::State::lists "$1/lists";
Dir::Cache "$1";
Dir::Cache::archives "$1/archives";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "-";
Debug::NoLocking "1";
END
    export APT_CONFIG="$1/apt.conf"
    apt-get -q update
}
