/* Whether an arena is what it should be: for tests and post-mortems. */
#ifndef MPGROUPCACHE_CHECK_H
#define MPGROUPCACHE_CHECK_H

#include "state.h"

/* Calls `report` with a line for each inconsistency, and returns their number. */
size_t mgc_arena_check(const struct mgc_arena *arena, void (*report)(void *context, const char *line), void *context);

#endif
