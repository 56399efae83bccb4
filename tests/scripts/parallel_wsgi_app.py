"""A WSGI application: the server looks up in parallel before it forks, then its workers do."""

import os

from threaded_calls import look_up, look_up_in_parallel

look_up_in_parallel()


def app(environ, start_response):
    if environ["PATH_INFO"] == "/parallel":
        look_up_in_parallel()
    else:
        look_up()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
