/* Where the parts of an arena lie in its address range, and the memory that is committed to it and to the control segment.
 *
 * Memory is committed for the index, the slots and the entries, by whoever finds that there is too little of it: so this
 * lies below all of them.
 */
#ifndef MPGROUPCACHE_SPACE_H
#define MPGROUPCACHE_SPACE_H

#include "state.h"

struct mgc_plan {
    uint64_t slots, slots_offset, index_offset, entries_offset, size;
};

/* Where the parts of an arena of this budget lie. */
struct mgc_plan mgc_arena_plan(uint64_t budget);
/* The address range that it reserves; 0 where words could not name all of its blocks. */
uint64_t mgc_arena_size(uint64_t budget);

/* Commits memory to a range of the segment. 0 or a negative errno. */
int mgc_commit(int fd, uint64_t offset, uint64_t bytes);
/* The same for an arena, which leaves its reserve: -ENOSPC. */
int mgc_arena_commit(struct mgc_arena *arena, uint64_t offset, uint64_t bytes);

/* A random number of 62 bits, not 0: from there on versions and clocks count, and neither comes to the end of 64. */
uint64_t mgc_random_start(void);

static inline uint64_t mgc_page_up(uint64_t bytes) { return (bytes + MGC_PAGE - 1) & ~(uint64_t)(MGC_PAGE - 1); }

#endif
