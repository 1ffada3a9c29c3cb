/* Slots of entries, and the order in which they were last used. */
#ifndef MPGROUPCACHE_LRU_H
#define MPGROUPCACHE_LRU_H

#include "state.h"

void mgc_lru_init(struct mgc_arena *arena);
/* A slot for a new entry, in no list; MGC_NO_SLOT when their table cannot grow. */
uint32_t mgc_slot_take(struct mgc_arena *arena);
void mgc_slot_give(struct mgc_arena *arena, uint32_t slot);
void mgc_lru_push(struct mgc_arena *arena, uint32_t slot, uint64_t tick);
/* `list`: the one that the slot is in, which is MGC_DEAD for an entry of a former era. */
void mgc_lru_unlink(struct mgc_arena *arena, uint32_t slot, uint32_t list);
/* All entries of both lists become the newest of MGC_DEAD. */
void mgc_lru_bury(struct mgc_arena *arena);
void mgc_lru_touch(struct mgc_arena *arena, uint32_t slot);
/* The slot whose entry a worker hit; MGC_NO_SLOT when it is not published any more, or of a former era. */
uint32_t mgc_lru_touched(const struct mgc_arena *arena, uint64_t word);
/* Merges touches, newest first, of this arena alone. */
struct mgc_lru_cursor {
    uint32_t at[2];
};
void mgc_lru_begin(const struct mgc_arena *arena, struct mgc_lru_cursor *cursor);
void mgc_lru_merge(struct mgc_arena *arena, struct mgc_lru_cursor *cursor, const struct mgc_touched *touched);

#endif
