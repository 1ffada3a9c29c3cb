/* Giving back what is dead: entries of former eras, and those that are past their ages and not kept any more. */
#ifndef MPGROUPCACHE_RECLAIM_H
#define MPGROUPCACHE_RECLAIM_H

#include "state.h"

/* Makes an entry that was just published, or whose ages have changed, due when it is to be reclaimed. */
void mgc_reclaim_later(struct mgc_arena *arena, uint32_t slot);
/* Ages of a group, which the next coordinator finds in its row. Where its entries are now kept for another time, all of them are
 * looked at: some 0.1 s for a million. */
void mgc_set_ages(struct mgc_control *control, uint32_t group, const struct mgc_group_ages *ages);
/* One step: 1: an entry is unpublished; 0: one that is not due yet was moved in the wheel, which each is a few times in its
 * life; -1: nothing is due at `now`. What a caller has unpublished it has to retire. */
int mgc_reclaim_step(struct mgc_arena *arena, uint64_t now);
/* `most` steps. How many entries had expired, here and before new ones, since the last call; `more`: others are due. */
uint64_t mgc_arena_reclaim(struct mgc_arena *arena, uint64_t most, int *more);
/* In how many ns there is something to do, at the least; MGC_EVER: nothing will be due. */
int64_t mgc_arena_next_death(const struct mgc_arena *arena);
/* All entries are dead from now on. In no time, whatever their number: they are reclaimed later. */
void mgc_arena_clear(struct mgc_arena *arena);

#endif
