#include "control.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reader.h" /* mgc_lock, mgc_sum_counters */
#include "space.h"

static struct mgc_control_header *header_of(const struct mgc_control *control) {
    return (struct mgc_control_header *)control->base;
}

/* Commits the next regions, as many of a step as there is memory for. Each by itself: the padding behind it costs nothing
 * where pages are small. */
static int commit_regions(struct mgc_control *control) {
    for (uint32_t i = 0; i < MGC_REGION_STEP && control->regions < MGC_MAX_REGIONS; i++) {
        int error = mgc_commit(control->fd, MGC_REGIONS_OFFSET + control->regions * MGC_REGION_STRIDE, MGC_REGION_SIZE);
        if (error)
            return error;
        control->regions++;
    }
    return 0;
}

int mgc_control_format(struct mgc_control *control, uint8_t *base, int fd, const uint8_t boot_id[16]) {
    memset(control, 0, sizeof *control);
    control->base = base;
    control->fd = fd;
    int error = mgc_commit(fd, 0, MGC_CONTROL_HEAD);
    if (!error)
        error = commit_regions(control);
    if (error)
        return error;
    struct mgc_control_header *header = header_of(control);
    header->magic = MGC_CONTROL_MAGIC;
    header->version = MGC_LAYOUT_VERSION;
    memcpy(header->boot_id, boot_id, sizeof header->boot_id);
    atomic_store_explicit(&header->region_count, control->regions, memory_order_relaxed);
    atomic_store_explicit(&header->clock_offset, mgc_random_start(), memory_order_relaxed);
    mgc_control_stamp(control);
    atomic_store_explicit(&header->state, MGC_SEGMENT_LIVE, memory_order_release);
    return 0;
}

int mgc_control_adopt(struct mgc_control *control, uint8_t *base, int fd, const uint8_t boot_id[16]) {
    memset(control, 0, sizeof *control);
    control->base = base;
    control->fd = fd;
    struct stat status;
    struct mgc_control_header *header = header_of(control);
    if (fstat(fd, &status) != 0 || status.st_size < (off_t)MGC_CONTROL_SIZE || status.st_blocks == 0 ||
        header->magic != MGC_CONTROL_MAGIC || header->version != MGC_LAYOUT_VERSION)
        return -EPROTO;
    if (memcmp(header->boot_id, boot_id, sizeof header->boot_id) != 0 ||
        atomic_load_explicit(&header->state, memory_order_acquire) != MGC_SEGMENT_LIVE)
        return -ESTALE;
    uint32_t regions = atomic_load_explicit(&header->region_count, memory_order_relaxed);
    uint32_t groups = atomic_load_explicit(&header->group_count, memory_order_relaxed);
    if (regions == 0 || regions > MGC_MAX_REGIONS || groups > MGC_MAX_GROUPS ||
        (uint64_t)status.st_blocks * 512 < MGC_CONTROL_COMMITTED(regions))
        return -EUCLEAN;
    for (uint32_t i = 0; i < groups; i++)
        if (mgc_control_group(control, i)->name_length > MGC_GROUP_NAME_BYTES)
            return -EUCLEAN;
    control->regions = regions;
    control->groups = groups;
    /* The dead one may have been folding. What it had moved and not yet zeroed is counted twice: at most one counter. */
    uint32_t epoch = atomic_load_explicit(&header->fold_epoch, memory_order_relaxed);
    atomic_store_explicit(&header->fold_epoch, epoch + (epoch & 1), memory_order_release);
    /* Touches since its last drain are forgotten: it may have died while it brought them in. */
    for (uint32_t i = 0; i < regions; i++)
        control->tails[i] = atomic_load_explicit(&mgc_region_at(control, i)->touch_head, memory_order_acquire);
    mgc_control_stamp(control);
    return 0;
}

void mgc_control_close(struct mgc_control *control) {
    free(control->pins);
    free(control->touched);
    control->pins = NULL;
    control->touched = NULL;
}

void mgc_control_stamp(struct mgc_control *control) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    atomic_store_explicit(&header_of(control)->alive, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
                          memory_order_relaxed);
}

int mgc_control_sign(int fd, uint8_t boot_id[16], uint64_t *alive) {
    struct mgc_control_header header; /* read, and not mapped: whoever left it may cut it off meanwhile */
    if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header || header.magic != MGC_CONTROL_MAGIC)
        return -EPROTO;
    memcpy(boot_id, header.boot_id, sizeof header.boot_id);
    *alive = atomic_load_explicit(&header.alive, memory_order_relaxed);
    return 0;
}

void mgc_control_retire(struct mgc_control *control) {
    atomic_store_explicit(&header_of(control)->state, MGC_SEGMENT_RETIRED, memory_order_release);
}

void mgc_segment_retire(int fd) {
    uint64_t magic = 0;
    if (pread(fd, &magic, sizeof magic, 0) != (ssize_t)sizeof magic ||
        (magic != MGC_CONTROL_MAGIC && magic != MGC_ARENA_MAGIC))
        return;
    /* The first page is there, since the magic is. Through a mapping, because readers are to see each word whole. */
    void *page = mmap(NULL, MGC_MAP, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return;
    if (magic == MGC_CONTROL_MAGIC) {
        struct mgc_control_header *header = page;
        atomic_store_explicit(&header->state, MGC_SEGMENT_RETIRED, memory_order_release);
    } else {
        struct mgc_arena_header *header = page;
        atomic_store_explicit(&header->state, MGC_SEGMENT_RETIRED, memory_order_release);
        atomic_store_explicit(&header->index, 0, memory_order_release);
    }
    munmap(page, MGC_MAP);
}

int mgc_control_add_group(struct mgc_control *control, const uint8_t *name, size_t length, uint64_t budget) {
    struct mgc_control_header *header = header_of(control);
    uint32_t id = control->groups;
    if (id >= MGC_MAX_GROUPS || length > MGC_GROUP_NAME_BYTES)
        return -ENOSPC;
    struct mgc_group_row *row = mgc_row_of(control, id);
    row->budget = budget;
    /* Random, so that a count that was noted of a former instance is none of this one's. */
    atomic_store_explicit(&row->changes, mgc_random_start(), memory_order_relaxed);
    row->ages = (struct mgc_group_ages){.ttl = MGC_FOREVER, .copy_ttl = MGC_FOREVER};
    row->name_length = (uint32_t)length;
    memcpy(row->name, name, length);
    control->groups = id + 1;
    atomic_store_explicit(&header->group_count, control->groups, memory_order_release);
    return (int)id;
}

uint32_t mgc_control_groups(const struct mgc_control *control) {
    return control->groups;
}

const struct mgc_group_row *mgc_control_group(const struct mgc_control *control, uint32_t group) {
    return mgc_row_of(control, group);
}

uint32_t mgc_control_attached(const struct mgc_control *control) {
    uint32_t attached = 0, count = control->regions;
    for (uint32_t i = 0; i < count; i++)
        attached += atomic_load_explicit(&mgc_region_at(control, i)->state, memory_order_relaxed) == MGC_REGION_LIVE;
    return attached;
}

void mgc_control_count_request(struct mgc_control *control, uint32_t group) {
    mgc_add(&mgc_row_of(control, group)->server_requests, 1);
}

uint64_t mgc_control_raise_changes(struct mgc_control *control, uint32_t group) {
    struct mgc_group_row *row = mgc_row_of(control, group);
    uint64_t changes = atomic_load_explicit(&row->changes, memory_order_relaxed) + 1;
    /* Before the words that the change clears or replaces: who finds one of them gone and loads anew sees the new count. */
    atomic_store_explicit(&row->changes, changes, memory_order_release);
    return changes;
}

uint64_t mgc_control_changes(const struct mgc_control *control, uint32_t group) {
    return atomic_load_explicit(&mgc_row_of(control, group)->changes, memory_order_relaxed);
}

void mgc_control_note_clear(struct mgc_control *control, uint32_t group) {
    struct mgc_group_row *row = mgc_row_of(control, group);
    union {
        struct mgc_counters named;
        uint64_t sums[MGC_COUNTERS];
    } counted;
    mgc_sum_counters(control->base, group, counted.sums);
    atomic_store_explicit(&row->cleared_hits, counted.named.main_hits + counted.named.hot_hits, memory_order_relaxed);
    atomic_store_explicit(&row->cleared_loads, counted.named.loads, memory_order_relaxed);
}

void mgc_control_advance(struct mgc_control *control, int64_t ns) {
    mgc_add(&header_of(control)->clock_offset, (uint64_t)ns);
}

uint32_t mgc_control_spare_regions(struct mgc_control *control, uint32_t spare) {
    uint32_t count = control->regions, claimed = count;
    while (claimed &&
           atomic_load_explicit(&mgc_region_at(control, claimed - 1)->state, memory_order_relaxed) == MGC_REGION_FREE)
        claimed--;
    while (control->regions - claimed < spare && control->regions < MGC_MAX_REGIONS && commit_regions(control) == 0)
        continue;
    /* Every scan after this store covers the new regions. One that is under way does not: a pin in a region claimed after
     * that scan's fence belongs to a get() that finds the words of that scan's victims gone. */
    if (control->regions > count)
        atomic_store_explicit(&header_of(control)->region_count, control->regions, memory_order_release);
    return control->regions - claimed;
}

static void fold(struct mgc_control *control, struct mgc_region *region) {
    struct mgc_control_header *header = header_of(control);
    uint32_t epoch = atomic_load_explicit(&header->fold_epoch, memory_order_relaxed);
    _Atomic uint64_t *totals = (_Atomic uint64_t *)(control->base + MGC_TOTALS_OFFSET);
    _Atomic uint64_t *counts = (_Atomic uint64_t *)region->counters;
    atomic_store_explicit(&header->fold_epoch, epoch + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* the odd epoch before the first change, for mgc_sum_counters() */
    for (size_t i = 0; i < MGC_MAX_GROUPS * MGC_COUNTERS; i++) {
        uint64_t n = atomic_load_explicit(&counts[i], memory_order_relaxed);
        if (n) {
            mgc_add(&totals[i], n);
            atomic_store_explicit(&counts[i], 0, memory_order_relaxed);
        }
    }
    atomic_store_explicit(&header->fold_epoch, epoch + 2, memory_order_release);
}

uint32_t mgc_control_reap(struct mgc_control *control) {
    uint32_t reaped = 0, count = control->regions;
    for (uint32_t i = 0; i < count; i++) {
        struct mgc_region *region = mgc_region_at(control, i);
        /* A region that is locked but still FREE is being claimed: it has nothing to reap. */
        if (atomic_load_explicit(&region->state, memory_order_acquire) == MGC_REGION_FREE ||
            mgc_lock(control->fd, MGC_REGION_LOCK(i)) != 0)
            continue;
        for (uint32_t pin = 0; pin < MGC_PINS; pin++)
            atomic_store_explicit(&region->pins[pin], 0, memory_order_release);
        atomic_store_explicit(&region->pin_limit, 0, memory_order_relaxed);
        fold(control, region);
        atomic_store_explicit(&region->state, MGC_REGION_FREE, memory_order_release);
        mgc_unlock(control->fd, MGC_REGION_LOCK(i));
        reaped++;
    }
    return reaped;
}
