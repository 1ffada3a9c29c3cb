#include "space.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/vfs.h>

/* Address space for entries, in budgets. Headers, padding and free space come on top of the budget, which counts keys and
 * values alone; at 4 it is the segment that evicts first only where these average under 16 bytes. */
#define ENTRIES_PER_BUDGET 4u
#define ENTRIES_MIN (1u << 20)
#define BYTES_PER_SLOT 64u /* of entries' address space: the least that an entry with a few bytes takes */

struct mgc_plan mgc_arena_plan(uint64_t budget) {
    struct mgc_plan plan;
    if (budget > MGC_MAX_ARENA)
        budget = MGC_MAX_ARENA; /* too large in any case; what follows must not overflow */
    uint64_t entries = mgc_page_up(budget * ENTRIES_PER_BUDGET + ENTRIES_MIN);
    plan.slots = entries / BYTES_PER_SLOT;
    if (plan.slots > MGC_SLOT_RANGE - 1)
        plan.slots = MGC_SLOT_RANGE - 1;
    uint64_t buckets = 1ull << MGC_INDEX_MIN_LOG2;
    while (buckets * MGC_BUCKET_WORDS * 3 / 4 < plan.slots)
        buckets *= 2;
    plan.slots_offset = MGC_PAGE;
    plan.index_offset = plan.slots_offset + mgc_page_up(plan.slots * sizeof(struct mgc_slot));
    plan.entries_offset = plan.index_offset + 2 * buckets * sizeof(mgc_bucket); /* the last generation and all before it */
    plan.size = MGC_MAP_UP(plan.entries_offset + entries);
    return plan;
}

uint64_t mgc_arena_size(uint64_t budget) {
    uint64_t size = mgc_arena_plan(budget).size;
    return size <= MGC_MAX_ARENA ? size : 0;
}

uint64_t mgc_random_start(void) {
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number)
        number = mgc_ticks() * 0x9e3779b97f4a7c15ull; /* the kernel is just starting */
    return (number >> 2) | 1;
}

int mgc_commit(int fd, uint64_t offset, uint64_t bytes) {
    int error;
    do
        error = posix_fallocate(fd, (off_t)offset, (off_t)bytes);
    while (error == EINTR); /* a signal in the middle: tmpfs undoes what it had done */
    return -error;
}

/* Asked at each step, and not from time to time: whatever else uses the file system has its part of it in the meantime. */
static int leaves_reserve(const struct mgc_arena *arena, uint64_t bytes) {
    struct statfs status;
    if (!arena->reserve || fstatfs(arena->fd, &status) != 0 || status.f_blocks == 0 /* it has no bound */)
        return 1;
    uint64_t free = (uint64_t)status.f_bavail * (uint64_t)status.f_bsize;
    return free >= bytes && free - bytes >= arena->reserve;
}

int mgc_arena_commit(struct mgc_arena *arena, uint64_t offset, uint64_t bytes) {
    if (bytes > arena->commit_limit)
        return -ENOSPC;
    int error = leaves_reserve(arena, bytes) ? mgc_commit(arena->fd, offset, bytes) : -ENOSPC;
    if (error)
        arena->commit_limit = bytes / 2; /* tmpfs fills itself up before it gives up: few tries, not one for each value */
    else
        mgc_add(&arena->header->committed, mgc_page_up(offset + bytes) - mgc_page_up(offset));
    return error;
}
