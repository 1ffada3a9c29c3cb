"""The C core's reading side, reader.h, as the modules of this folder see it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    void *MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK

cdef extern from "reader.h" nogil:
    enum: MGC_MISS, MGC_DETACHED, MGC_HIT, MGC_STALE_HIT, MGC_ABSENT_HIT, MGC_PINS, MGC_COPY_PIN, MGC_COUNTERS, MGC_MAX_KEY, MGC_SEGMENT_LIVE
    enum: MGC_LAYOUT_VERSION, MGC_MAX_GROUPS, MGC_PAGE, MGC_MAIN, MGC_HOT
    size_t MGC_CONTROL_SIZE, MGC_REGION_STRIDE
    uint64_t MGC_CONTROL_MAGIC, MGC_FOREVER

    ctypedef struct mgc_counters:
        pass
    enum: MGC_NO_REGION
    struct mgc_region:
        uint32_t generation
        mgc_counters counters[1]
    struct mgc_list_stats:
        uint64_t bytes
        uint64_t items
        uint64_t evictions
    struct mgc_arena_header:
        uint64_t budget
        uint64_t committed
        uint64_t limbo_bytes
        mgc_list_stats lists[2]
    struct mgc_control_header:
        uint64_t magic
        uint32_t version
        uint32_t state
        uint64_t clock_offset
    struct mgc_block:
        pass
    struct mgc_map:
        const uint8_t *base
        const mgc_control_header *control
        uint32_t arena
    struct mgc_hit:
        const uint8_t *value
        uint64_t length
    int mgc_get(const mgc_map *, mgc_region *, uint32_t, const uint8_t *, size_t, mgc_hit *)
    int mgc_get_kept(const mgc_map *, mgc_region *, uint32_t, const uint8_t *, size_t, uint64_t, mgc_hit *)
    struct mgc_look:
        const uint8_t *key
        size_t key_length
        uint32_t pin
        int found
        mgc_hit hit
    void mgc_get_many(const mgc_map *, mgc_region *, mgc_look *, size_t)
    void mgc_unpin(mgc_region *, uint32_t)
    const mgc_block *mgc_pinned_block(const mgc_region *, uint32_t, const uint8_t *)
    uint64_t mgc_version(const mgc_block *)
    uint64_t mgc_fresh_until(const mgc_block *)
    uint64_t mgc_dead_at(const mgc_block *)
    uint64_t mgc_host_now()
    uint64_t mgc_now(const mgc_control_header *)
    ctypedef uint64_t atomic64 "_Atomic uint64_t"
    void mgc_count(atomic64 *, uint64_t)
    int mgc_map_attach(mgc_map *, const void *, const void *, uint64_t)
    int mgc_region_claim(int, const mgc_control_header *, int, mgc_region **)
    void mgc_region_copy_pins(mgc_region *, const mgc_region *)
    void mgc_region_adopt(mgc_region *)
    void mgc_region_unmap(mgc_region *)
    void mgc_region_leave(mgc_region *)
    int mgc_regions_held(int, int)
    uint32_t MGC_WRITER_LOCK, MGC_GATE_LOCK
    int mgc_lock(int, uint32_t)
    int mgc_unlock(int, uint32_t)
    void mgc_sum_counters(const void *, uint32_t, uint64_t *)
    uint64_t mgc_changes(const void *, uint32_t)
    void mgc_cleared(const void *, uint32_t, uint64_t *, uint64_t *)
    uint64_t mgc_server_requests(const void *, uint32_t)
