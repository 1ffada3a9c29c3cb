/* Making room: which entries have to go for another (dead ones first), and when the arena is given more memory instead. */
#ifndef MPGROUPCACHE_EVICT_H
#define MPGROUPCACHE_EVICT_H

#include "state.h"

/* Evicts until `bytes` more of keys and values are within the budget. `keep` is a slot that must stay. 0 or MGC_NO_ROOM. */
int mgc_evict_for_budget(struct mgc_arena *arena, uint64_t bytes, uint32_t keep);
/* Gives up what is dead, or else evicts the next victim. 0, or MGC_NO_ROOM when there is none. */
int mgc_evict_one(struct mgc_arena *arena, uint32_t keep);
/* A block of `bytes`, evicting and committing as needed; 0 when there is no way. */
uint64_t mgc_evict_for_block(struct mgc_arena *arena, uint64_t bytes, uint32_t keep);
void mgc_evict(struct mgc_arena *arena, uint32_t slot);

#endif
