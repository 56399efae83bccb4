# Many tables in one call: the features of a request, each pooled into its columns.
#
# A feature is a job of the forward pass (forward.pxi) whose results lie in its columns of
# one wide output. For one request the work is some hundred rows in as many cache lines, so
# rows are prefetched across features: the first rows of the next features are on their way
# before the first feature is added up.

cdef void fetch_first(const Job* job) noexcept nogil:
    """Prefetch the first rows of a job, as many as it keeps ahead, unless its ids are mapped."""
    cdef Py_ssize_t n_indices = job.bags.n_indices, k
    if job.mapping != NULL:
        return
    cdef Py_ssize_t start = max(0, min(bag_bound(&job.bags, 0), n_indices))
    for k in range(start, min(start + job.fetching.ahead, n_indices)):
        fetch_bytes(job.fetching.way, row_address(job, k), job.row_bytes)


cdef bint pool_in_order(
    const Job* jobs, Py_ssize_t n_jobs, double budget, int64_t* n_invalid
) noexcept nogil:
    """Do all jobs, one after the other, with so many bytes of later ones prefetched. False if
    something is bad."""
    cdef:
        Py_ssize_t j, n_fetched = 0
        double in_flight = 0
        Task task
        bint done = True
        # Once: for each of some ten small jobs it would take a tenth of the call.
        uint64_t floats = embag_use_default_floats()
    for j in range(n_jobs):
        while n_fetched < n_jobs and (n_fetched <= j or in_flight < budget):
            fetch_first(&jobs[n_fetched])
            in_flight += bytes_of_job(&jobs[n_fetched])
            n_fetched += 1
        task = Task(0, jobs[j].bags.n_bags, 0, jobs[j].dim, False, False, 0, j)
        done = do_task(&jobs[j], &task)
        if not done:
            break
        n_invalid[j] = task.n_invalid
        in_flight -= bytes_of_job(&jobs[j])
    embag_restore_floats(floats)
    return done


cdef bint pool_timed(const Job* jobs, Py_ssize_t n_jobs, int64_t* n_invalid) noexcept nogil:
    """pool_in_order with the budget that is best known, or is to be timed."""
    cdef:
        Choice* choice = NULL
        Timed timed
        int budget
        Py_ssize_t n_positions = 0, j
        double table_bytes = 0
        bint done
    for j in range(n_jobs):
        n_positions += jobs[j].n_positions
        table_bytes = table_bytes + jobs[j].table_bytes
    if n_positions >= PIECE and not is_pinned:
        choice = choice_of(class_of(0, IN_FLIGHT, LINE * n_jobs, table_bytes, False))
    if choice == NULL:
        return pool_in_order(jobs, n_jobs, BUDGETS[1], n_invalid)
    timed = begin_piece(choice, n_positions)
    budget = timed.candidate if timed.candidate >= 0 else known(choice)
    # Of another class, if another thread has just taken the place of the choice.
    done = pool_in_order(jobs, n_jobs, BUDGETS[candidate_in(&budget, N_BUDGETS)], n_invalid)
    if done:
        end_piece(choice, timed, n_positions)
    return done


cdef bint pool_paged(Job* jobs, Py_ssize_t n_jobs, int64_t* n_invalid) noexcept nogil:
    """pool_timed; pages of rows are prefetched where that helps, across features: one of them
    has few rows to wait for at once. False if something is bad."""
    cdef:
        Paging* paging
        Py_ssize_t first = 0, n_left = 0, stop, size, n, j
        size_t key = 0
        bint fetched
        int64_t began
    for j in range(n_jobs):
        if paged_positions(&jobs[j]) > 0:
            n_left += jobs[j].n_positions
            key = ~<size_t>jobs[j].table   # of all features together, not of the table
    if n_left == 0:
        return pool_timed(jobs, n_jobs, n_invalid)
    paging = paging_of(key)
    while first < n_jobs:
        fetched = takes_pages(paging, n_left)
        size = paged_piece(paging, fetched)
        n = paged_positions(&jobs[first])
        stop = first + 1
        while stop < n_jobs and n + paged_positions(&jobs[stop]) <= size:
            n += paged_positions(&jobs[stop])
            stop += 1
        began = begin_pages(paging, n)
        if n <= size:                # else do_task cuts one feature into pieces
            for j in range(first, stop):
                if jobs[j].mapping != NULL:
                    continue         # do_mapped does that
                if fetched and jobs[j].paged:
                    fetch_pages(&jobs[j], position_of(&jobs[j], 0), jobs[j].bags.n_indices)
                jobs[j].paged = False
        if not pool_timed(&jobs[first], stop - first, &n_invalid[first]):
            return False
        end_pages(paging, fetched, n, began)
        n_left -= n
        first = stop
    return True


cdef inline Py_ssize_t paged_positions(const Job* job) noexcept nogil:
    return job.n_positions if job.paged and job.mapping == NULL else 0


cdef inline int set_ids(
    Job* job, cnp.ndarray input, Py_ssize_t n_positions, object sample, bint several
) except -1:
    """Complete a job, whose bags are set, by the ids of a call and their weights."""
    set_input(job, input, n_positions, sample)
    job.reduce_columns = reducer_of(job.encoding, job.out_encoding, job.wide)
    if sample is not None:
        describe_operation(job, job.mode, True, False)
    choose_strategy(job, several)
    return 0


cdef object find_in(dict mapping, object name):
    """The value of a name, or None. Cython reads a dict by borrowed references, which without the
    GIL are valid only while the dict is locked."""
    with cython.critical_section(mapping):
        return mapping.get(name)


cdef class Collection:
    """Tables and the features that are looked up in them, ready to be called.

    Nothing here changes once it is made, but for `n_invalid`, to which calls add in one step
    each: any number of threads may call it.
    """

    cdef:
        Job* jobs                    # (n_features,): all that does not depend on the call
        Mapping* mappings            # (n_features,)
        tuple tables                 # keeps the memory that the jobs point to
        tuple memory                 # what no output may overlap
        object n_invalid             # as given
        readonly Py_ssize_t n_features
        readonly Py_ssize_t n_columns

    def __cinit__(self, tuple features not None, tuple memory not None, object n_invalid):
        """`features` holds (rows, encoding, dim, mode, padding, refuse, stand_in, default_row,
        normalizes, mapping, row_scales), one for each; `memory` the arrays that no output may
        overlap: all tables, as given; `n_invalid`, (n_features,) int64, counts the ids out of range
        that calls did not refuse, or is None."""
        cdef Py_ssize_t f, n_ids
        cdef cnp.ndarray rows
        cdef Job* job
        self.n_features = len(features)
        # Unpacked and not indexed, which is not checked: a tuple of another length raises.
        self.tables = tuple([(rows, mapping, scales)
                             for rows, _, _, _, _, _, _, _, _, mapping, scales in features])
        self.memory = memory
        self.n_invalid = n_invalid
        refuse_change(n_invalid is None
                      or is_factors(n_invalid, self.n_features, cnp.NPY_INT64))
        self.jobs = <Job*>malloc(max(<size_t>1, <size_t>self.n_features) * sizeof(Job))
        self.mappings = <Mapping*>malloc(max(<size_t>1, <size_t>self.n_features) * sizeof(Mapping))
        if self.jobs == NULL or self.mappings == NULL:
            raise MemoryError("no memory for a collection")
        memset(self.jobs, 0, <size_t>self.n_features * sizeof(Job))
        for f in range(self.n_features):
            (rows, encoding, dim, mode, padding, refuse, stand_in, default_row,
             normalizes, mapping, row_scales) = features[f]
            job = &self.jobs[f]
            demand_encoding(encoding)
            refuse_change(rows is not None and is_encoded_table(rows, encoding, dim))
            describe_table(job, rows, encoding, dim)
            if row_scales is not None:
                describe_scales(job, row_scales)
            describe_operation(job, mode, False, False)
            job.padding = padding
            job.skip_invalid = not refuse
            job.stand_in = stand_in
            job.default_row = default_row
            job.normalizes = normalizes
            if mapping is not None:
                refuse_change(describe_mapping(
                    &self.mappings[f], mapping, job.n_rows, cnp.NPY_FLOAT32))
                job.mapping = &self.mappings[f]
            n_ids = first_id_of(job) + n_ids_of(job)
            refuse_change(job.padding < n_ids and job.stand_in < n_ids
                          and job.default_row < n_ids)
            job.out_encoding = FLOAT32
            # For a call these become addresses.
            job.out = <void*>(self.n_columns * <Py_ssize_t>sizeof(float))
            self.n_columns += dim
        for f in range(self.n_features):
            self.jobs[f].out_stride = self.n_columns

    def __dealloc__(self):
        free(self.jobs)
        free(self.mappings)

    def pool(
        self,
        int n_threads,
        object values,               # IN   (n_indices,) int32 or int64: feature by feature
        object offsets,              # IN   (n_features * n_bags + 1,) int32 or int64
        object per_sample_weights,   # IN   like values, float32; or None
        object out,                  # OUT  (n_bags, n_columns) float32; or None for a new one
    ):
        """Pool all features; returns `out`. None if an argument is unusual or wrong: a given
        `out` is then as it was."""
        cdef:
            Py_ssize_t n_bags, n_indices, f, start, stop
            Bags bags
            Job* jobs
            Job* job
            bint is_new = out is None
            bint done = True
        if not (is_index_array(values) and is_index_array(offsets)
                and cnp.PyArray_NDIM(<cnp.ndarray>values) == 1
                and cnp.PyArray_NDIM(<cnp.ndarray>offsets) == 1):
            return None
        n_indices = cnp.PyArray_DIM(<cnp.ndarray>values, 0)
        n_bags = cnp.PyArray_DIM(<cnp.ndarray>offsets, 0) - 1
        if n_bags < 0 or self.n_features == 0 or n_bags % self.n_features != 0:
            return None
        n_bags = n_bags // self.n_features
        if not (per_sample_weights is None
                or (is_factors(per_sample_weights, n_indices, cnp.NPY_FLOAT32)
                    and cnp.PyArray_NDIM(<cnp.ndarray>per_sample_weights) == 1)):
            return None
        if is_new:
            out = empty_matrix(n_bags, self.n_columns, cnp.NPY_FLOAT32)
        elif not (is_result(out, n_bags, self.n_columns, cnp.NPY_FLOAT32)
                  and is_apart(<cnp.ndarray>out, values) and is_apart(<cnp.ndarray>out, offsets)
                  and is_apart(<cnp.ndarray>out, per_sample_weights)):
            return None
        if not is_new:
            for array in self.memory:
                if not is_apart(<cnp.ndarray>out, array):
                    return None

        bags.offsets = cnp.PyArray_DATA(<cnp.ndarray>offsets)
        bags.wide = cnp.PyArray_ITEMSIZE(<cnp.ndarray>offsets) == 8
        bags.n_offsets = n_bags + 1
        bags.bag_size = 0
        bags.n_bags = n_bags
        stop = bag_bound(&bags, 0)
        if stop != 0:
            return None
        jobs = self.jobs_of(<char*>cnp.PyArray_DATA(<cnp.ndarray>out))
        try:
            for f in range(self.n_features):
                job = &jobs[f]
                start = stop
                job.bags = bags
                job.bags.offsets = (<const char*>bags.offsets
                                    + f * n_bags * (8 if bags.wide else 4))
                # Nothing beyond a feature's last position is read as its own.
                stop = bag_bound(&job.bags, n_bags)
                done = done and start <= stop <= n_indices
                job.bags.n_indices = stop
                set_ids(job, <cnp.ndarray>values, stop - start if done else 0,
                        per_sample_weights, n_threads > 1)
            if done and not is_new:  # nothing may be written if an id is bad
                with nogil:
                    for f in range(self.n_features):
                        done = done and is_sound(&jobs[f])
            done = done and self.run(jobs, n_threads)
        finally:
            free(jobs)
        return out if done else None

    def pool_each(
        self,
        int n_threads,
        tuple inputs not None,       # IN   an index array for each feature: 1-D, or 2-D
        tuple offsets not None,      # IN   an index array for each, or None where that is 2-D
        int include_last_offset,     # PART: and the first may be any
        tuple per_sample_weights not None,  # IN   float32 like the input for each, or None
        cnp.ndarray out not None,    # OUT  (n_bags, n_columns) float32
        object n_valid=None,         # OUT  (n_features, n_bags) int64: how many entries count
    ) -> bool:
        """Fill `out`. False if an offset or an index is bad; it is then half-written."""
        cdef:
            Py_ssize_t f, n_positions
            Job* jobs
            Job* job
            bint done = True
        refuse_change(len(inputs) == len(offsets) == len(per_sample_weights) == self.n_features
                      and cnp.PyArray_NDIM(out) == 2
                      and is_result(out, cnp.PyArray_DIM(out, 0), self.n_columns,
                                    cnp.NPY_FLOAT32))
        for f in range(self.n_features):
            refuse_change(
                is_index_array(inputs[f])
                and (offsets[f] is None or is_index_array(offsets[f]))
                and describe_bags(inputs[f], offsets[f], include_last_offset != 0).n_bags
                == cnp.PyArray_DIM(out, 0)
                and (per_sample_weights[f] is None
                     or is_factors(per_sample_weights[f], cnp.PyArray_SIZE(inputs[f]),
                                   cnp.NPY_FLOAT32))
            )
        refuse_change(n_valid is None
                      or is_factors(n_valid, self.n_features * cnp.PyArray_DIM(out, 0),
                                    cnp.NPY_INT64))
        jobs = self.jobs_of(<char*>cnp.PyArray_DATA(out))
        try:
            for f in range(self.n_features):
                job = &jobs[f]
                if n_valid is not None:
                    job.n_valid = (<int64_t*>cnp.PyArray_DATA(<cnp.ndarray>n_valid)
                                   + f * cnp.PyArray_DIM(out, 0))
                job.bags = describe_bags(inputs[f], offsets[f], include_last_offset != 0)
                n_positions = positions_in(&job.bags, include_last_offset)
                done = done and n_positions >= 0
                set_ids(job, inputs[f], n_positions, per_sample_weights[f], n_threads > 1)
            done = done and self.run(jobs, n_threads)
        finally:
            free(jobs)
        return done

    def gather_named(
        self,
        dict values not None,        # IN   for each feature ids: 2-D, or (ids, offsets)
        object per_sample_weights,   # IN   a dict from some features to arrays; or None
        tuple names not None,        # of the features, in order
        object include_last_offset,
    ):
        """What `pool_each` takes: (n_indices, inputs, offsets, weights, a new output). Lists
        of ints are converted. None if an argument is unusual or wrong."""
        cdef Py_ssize_t n_bags = -1, n_indices = 0, n_weighted = 0, count
        cdef list inputs = [], offsets = [], weights = []
        if not ((include_last_offset is True or include_last_offset is False)
                and len(values) == self.n_features == len(names)
                and (per_sample_weights is None or type(per_sample_weights) is dict)):
            return None
        for name in names:
            ids = find_in(values, name)
            bounds = None
            if type(ids) is tuple and len(<tuple>ids) == 2:
                ids, bounds = <tuple>ids
                if type(ids) is list:
                    ids = ids_of_list(<list>ids)
                if type(bounds) is list:
                    bounds = ids_of_list(<list>bounds)
                if bounds is None:
                    return None
            elif type(ids) is list:
                if not ids:          # a batch of nothing, or forgotten offsets
                    return None
                read = ids_of_lists(ids, include_last_offset is True)
                if read is None:
                    return None
                ids, bounds = <tuple>read
            if not (is_index_array(ids) and (bounds is None or is_index_array(bounds))):
                return None
            count = describe_bags(ids, bounds, include_last_offset is True).n_bags
            if count < 0 or (n_bags >= 0 and count != n_bags):
                return None
            sample = None
            if per_sample_weights is not None:
                sample = find_in(<dict>per_sample_weights, name)
            if sample is not None:
                n_weighted += 1
                if not (MODES[self.jobs[len(inputs)].mode].weighted != NO_OPERATION
                        and is_factors(sample, cnp.PyArray_SIZE(ids), cnp.NPY_FLOAT32)
                        and are_of_shape(<cnp.ndarray>sample, <cnp.ndarray>ids)):
                    return None
            n_bags = count
            n_indices += cnp.PyArray_SIZE(ids)
            inputs.append(ids)
            offsets.append(bounds)
            weights.append(sample)
        if n_bags < 0 or (per_sample_weights is not None
                          and n_weighted != len(<dict>per_sample_weights)):
            return None
        return (n_indices, tuple(inputs), tuple(offsets), tuple(weights),
                empty_matrix(n_bags, self.n_columns, cnp.NPY_FLOAT32))

    cdef Job* jobs_of(self, char* out) except NULL:
        """The jobs of one call, to be completed and freed."""
        cdef Py_ssize_t f
        cdef size_t n_bytes = max(<size_t>1, <size_t>self.n_features) * sizeof(Job)
        cdef Job* jobs = <Job*>malloc(n_bytes)
        if jobs == NULL:
            raise MemoryError("no memory to plan a call")
        memcpy(jobs, self.jobs, n_bytes)
        for f in range(self.n_features):
            jobs[f].out = out + <Py_ssize_t>self.jobs[f].out
        return jobs

    cdef bint run(self, Job* jobs, int n_threads) except -1:
        cdef:
            size_t n_features = <size_t>self.n_features
            int64_t* n_invalid = <int64_t*>malloc(
                max(<size_t>1, n_features * sizeof(int64_t)))
            int64_t* total
            size_t f
            bint done
        if n_invalid == NULL:
            raise MemoryError("no memory to plan a call")
        memset(n_invalid, 0, n_features * sizeof(int64_t))
        try:
            if n_threads > 1 or is_large(slices_of(bytes_of_jobs(jobs, self.n_features)), 1):
                done = do_jobs(jobs, self.n_features, n_threads, n_invalid)
            else:
                with nogil:
                    done = pool_paged(jobs, self.n_features, n_invalid)
            if done and self.n_invalid is not None:
                total = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>self.n_invalid)
                for f in range(n_features):
                    embag_count(total + f, n_invalid[f])
        finally:
            free(n_invalid)
        if not done:
            demand_memory()
        return done
