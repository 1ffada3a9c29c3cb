#include "lru.h"

#include <errno.h>
#include <stdlib.h>

#include "space.h"

#define SLOTS_STEP 2048u /* slots committed at a time, at least */

void mgc_lru_init(struct mgc_arena *arena) {
    arena->unused_slots = MGC_NO_SLOT;
    for (int list = 0; list < 3; list++)
        arena->lists[list] = (struct mgc_list){MGC_NO_SLOT, MGC_NO_SLOT};
}

static int more_slots(struct mgc_arena *arena) {
    if (arena->slot_count == arena->slots_committed) {
        uint32_t more = arena->slots_committed / 8 > SLOTS_STEP ? arena->slots_committed / 8 : SLOTS_STEP;
        if (more > arena->slots_limit - arena->slots_committed)
            more = arena->slots_limit - arena->slots_committed;
        uint64_t from = arena->slots_committed * sizeof(struct mgc_slot), bytes = more * sizeof(struct mgc_slot);
        int error = more ? mgc_arena_commit(arena, arena->header->slots_offset + from, bytes) : -ENOSPC;
        if (error)
            return error;
        arena->slots_committed += more;
        atomic_store_explicit(&arena->header->slots_end, arena->header->slots_offset + from + bytes, memory_order_relaxed);
    }
    if (arena->slot_count == arena->links_room) {
        uint32_t room = arena->links_room + arena->links_room / 4 + 256;
        struct mgc_link *links = realloc(arena->links, room * sizeof *links);
        if (!links)
            return -ENOMEM;
        arena->links = links;
        arena->links_room = room;
    }
    return 0;
}

uint32_t mgc_slot_take(struct mgc_arena *arena) {
    uint32_t slot = arena->unused_slots;
    if (slot != MGC_NO_SLOT) {
        arena->unused_slots = arena->links[slot].older;
        return slot;
    }
    return more_slots(arena) ? MGC_NO_SLOT : arena->slot_count++;
}

void mgc_slot_give(struct mgc_arena *arena, uint32_t slot) {
    atomic_store_explicit(&arena->slots[slot].word, 0, memory_order_relaxed);
    arena->links[slot].older = arena->unused_slots;
    arena->unused_slots = slot;
}

static void insert_before(struct mgc_arena *arena, uint32_t slot, uint32_t older, uint64_t tick) {
    struct mgc_list *list = &arena->lists[arena->slots[slot].list];
    struct mgc_link *link = &arena->links[slot];
    uint32_t newer = older == MGC_NO_SLOT ? list->oldest : arena->links[older].newer;
    arena->slots[slot].tick = tick;
    link->older = older;
    link->newer = newer;
    *(older == MGC_NO_SLOT ? &list->oldest : &arena->links[older].newer) = slot;
    *(newer == MGC_NO_SLOT ? &list->newest : &arena->links[newer].older) = slot;
}

void mgc_lru_push(struct mgc_arena *arena, uint32_t slot, uint64_t tick) {
    insert_before(arena, slot, arena->lists[arena->slots[slot].list].newest, tick);
}

void mgc_lru_unlink(struct mgc_arena *arena, uint32_t slot, uint32_t list) {
    struct mgc_list *ends = &arena->lists[list];
    struct mgc_link *link = &arena->links[slot];
    *(link->older == MGC_NO_SLOT ? &ends->oldest : &arena->links[link->older].newer) = link->newer;
    *(link->newer == MGC_NO_SLOT ? &ends->newest : &arena->links[link->newer].older) = link->older;
}

void mgc_lru_bury(struct mgc_arena *arena) {
    struct mgc_list *dead = &arena->lists[MGC_DEAD];
    for (uint32_t list = 0; list < 2; list++) {
        struct mgc_list *from = &arena->lists[list];
        if (from->oldest == MGC_NO_SLOT)
            continue;
        arena->links[from->oldest].older = dead->newest;
        *(dead->newest == MGC_NO_SLOT ? &dead->oldest : &arena->links[dead->newest].newer) = from->oldest;
        dead->newest = from->newest;
        *from = (struct mgc_list){MGC_NO_SLOT, MGC_NO_SLOT};
    }
}

void mgc_lru_touch(struct mgc_arena *arena, uint32_t slot) {
    mgc_lru_unlink(arena, slot, arena->slots[slot].list);
    mgc_lru_push(arena, slot, mgc_ticks());
}

void mgc_lru_begin(const struct mgc_arena *arena, struct mgc_lru_cursor *cursor) {
    for (int list = 0; list < 2; list++)
        cursor->at[list] = arena->lists[list].newest;
}

uint32_t mgc_lru_touched(const struct mgc_arena *arena, uint64_t word) {
    uint64_t offset = mgc_word_offset(word);
    if (offset < arena->heap.start || offset + sizeof(struct mgc_block) > arena->heap.end)
        return MGC_NO_SLOT;
    /* The block may have been reused since the touch, and its header may be the middle of a value by now. The slot that
     * stands there is only a guess: slots are the writer's own, and one that holds this very word is published there. */
    uint32_t slot = mgc_heap_block(&arena->heap, offset)->slot;
    if (slot >= arena->slot_count || mgc_slot_word(arena, slot) != word)
        return MGC_NO_SLOT;
    return mgc_is_of_this_era(arena, mgc_slot_block(arena, slot)) ? slot : MGC_NO_SLOT;
}

void mgc_lru_merge(struct mgc_arena *arena, struct mgc_lru_cursor *cursor, const struct mgc_touched *touched) {
    uint32_t slot = mgc_lru_touched(arena, touched->word);
    uint64_t time = touched->time & ~0xffull;
    if (slot == MGC_NO_SLOT || arena->slots[slot].tick >= time)
        return;
    /* Both sequences descend in time, so this is a merge: the cursor never turns back. */
    uint32_t *at = &cursor->at[arena->slots[slot].list];
    while (*at != MGC_NO_SLOT && *at != slot && arena->slots[*at].tick > time)
        *at = arena->links[*at].older;
    if (*at == slot) {
        arena->slots[slot].tick = time; /* already in its place */
        return;
    }
    mgc_lru_unlink(arena, slot, arena->slots[slot].list);
    insert_before(arena, slot, *at, time);
    *at = slot;
}
