"""The C core's writing side, writer.h, as _writer.pyx sees it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "writer.h":
    enum: MGC_COUNTERS, MGC_MAX_GROUPS, MGC_GROUP_NAME_BYTES, MGC_RATE_SECOND, MGC_HOT, MGC_AGED, MGC_ABSENT, MGC_ALIGNED, MGC_COPY
    int64_t MGC_LONGEST, MGC_EVER
    uint64_t MGC_FOREVER
    size_t MGC_CONTROL_SIZE, MGC_TOTALS_OFFSET
    uint64_t MGC_MAX_ARENA
    ctypedef struct mgc_counters:
        pass
    struct mgc_list_stats:
        uint64_t bytes
        uint64_t items
        uint64_t evictions
    struct mgc_arena_header:
        uint32_t incarnation
        uint64_t committed
        uint64_t limbo_bytes
        mgc_list_stats lists[2]
    struct mgc_control:
        uint8_t *base
        uint64_t touches_lost
        uint32_t now
    struct mgc_arena:
        mgc_arena_header *header
        uint64_t budget
        uint64_t max_entry
        uint64_t commit_limit
    struct mgc_traits:
        uint32_t flags
        uint64_t version
        uint64_t owners_version
        int64_t fresh
        int64_t dead
    struct mgc_reservation:
        uint8_t *value
        uint64_t length
    struct mgc_found:
        const uint8_t *value
        uint64_t length
        uint64_t version
        uint32_t flags
        int64_t fresh
        int64_t dead
        bint refresh_due
    struct mgc_arena_options:
        uint32_t arena
        uint32_t incarnation
        uint64_t budget
        uint64_t max_entry
        uint64_t seed
        uint64_t reserve
        uint32_t checksums
        uint8_t boot_id[16]
    void mgc_segment_retire(int)
    int mgc_control_format(mgc_control *, uint8_t *, int, const uint8_t *)
    struct mgc_group_ages:
        uint64_t ttl
        uint64_t stale
        uint64_t stale_if_error
        uint64_t copy_ttl
        uint64_t negative_ttl
        double jitter
    struct mgc_group_row:
        uint64_t budget
        mgc_group_ages ages
        uint32_t name_length
        uint8_t name[260]
    struct mgc_adopted:
        uint64_t entries
        uint64_t dropped
    int mgc_control_adopt(mgc_control *, uint8_t *, int, const uint8_t *)
    uint32_t mgc_control_groups(const mgc_control *)
    const mgc_group_row *mgc_control_group(const mgc_control *, uint32_t)
    uint32_t mgc_control_attached(const mgc_control *)
    int mgc_arena_adopt(mgc_arena *, uint8_t *, uint64_t, int, mgc_control *, const mgc_arena_options *, mgc_adopted *)
    void mgc_control_close(mgc_control *)
    void mgc_control_retire(mgc_control *)
    void mgc_control_stamp(mgc_control *)
    int mgc_control_sign(int, uint8_t *, uint64_t *)
    int mgc_control_add_group(mgc_control *, const uint8_t *, size_t, uint64_t)
    uint32_t mgc_control_spare_regions(mgc_control *, uint32_t)
    uint32_t mgc_control_reap(mgc_control *)
    size_t mgc_control_drain(mgc_control *)
    uint64_t mgc_arena_size(uint64_t)
    int mgc_arena_format(mgc_arena *, uint8_t *, int, mgc_control *, const mgc_arena_options *)
    void mgc_arena_retire(mgc_arena *)
    void mgc_arena_close(mgc_arena *)
    uint64_t mgc_new_version(mgc_arena *)
    int mgc_arena_reserve(mgc_arena *, const uint8_t *, size_t, uint64_t, const mgc_traits *, mgc_reservation *)
    bint mgc_arena_publish(mgc_arena *, const mgc_reservation *)
    void mgc_arena_abandon(mgc_arena *, const mgc_reservation *)
    int mgc_arena_find(mgc_arena *, const uint8_t *, size_t, mgc_found *)
    int mgc_arena_find_kept(mgc_arena *, const uint8_t *, size_t, mgc_found *)
    int mgc_arena_serve(mgc_arena *, const uint8_t *, size_t, mgc_found *, double *)
    double mgc_arena_minute_qps(const mgc_arena *, const uint8_t *, size_t)
    bint mgc_arena_remove(mgc_arena *, const uint8_t *, size_t, uint64_t)
    bint mgc_arena_touch(mgc_arena *, const uint8_t *, size_t, int64_t, int64_t)
    bint mgc_arena_put_off(mgc_arena *, const uint8_t *, size_t, int64_t)
    bint mgc_arena_revive(mgc_arena *, const uint8_t *, size_t, int64_t)
    void mgc_arena_clear(mgc_arena *)
    uint64_t mgc_arena_reclaim(mgc_arena *, uint64_t, bint *)
    int64_t mgc_arena_next_death(const mgc_arena *)
    void mgc_set_ages(mgc_control *, uint32_t, const mgc_group_ages *)
    uint64_t mgc_control_raise_changes(mgc_control *, uint32_t)
    uint64_t mgc_control_changes(const mgc_control *, uint32_t)
    void mgc_control_note_clear(mgc_control *, uint32_t)
    void mgc_control_advance(mgc_control *, int64_t)
    void mgc_arena_sweep(mgc_arena *)
    size_t mgc_arena_check(const mgc_arena *, void (*)(void *, const char *) noexcept, void *)
    ctypedef uint64_t atomic64 "_Atomic uint64_t"
    void mgc_control_count_request(mgc_control *, uint32_t)
    void mgc_add(atomic64 *, uint64_t)
