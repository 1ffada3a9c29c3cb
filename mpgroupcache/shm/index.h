/* Words of the index: finding them, places for new ones, growth. */
#ifndef MPGROUPCACHE_INDEX_H
#define MPGROUPCACHE_INDEX_H

#include "state.h"

int mgc_index_init(struct mgc_arena *arena);
/* Where the key's word is, or NULL. */
_Atomic uint64_t *mgc_index_find(const struct mgc_arena *arena, uint64_t hash, const uint8_t *key, size_t key_length);
/* Where the slot's word is; the slot is published. */
_Atomic uint64_t *mgc_index_place(const struct mgc_arena *arena, uint32_t slot);
/* An empty place for a hash; grows the index when it is time. NULL when both buckets are full and it cannot grow, or
 * should not: then the least recently used slot of the two is in *crowd. */
_Atomic uint64_t *mgc_index_room(struct mgc_arena *arena, uint64_t hash, uint32_t *crowd);

#endif
