#include "wheel.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(MGC_WHEEL_FIRST + MGC_WHEEL_LEVELS * MGC_WHEEL_PLACES <= MGC_WHEEL_NONE, "places have numbers of their own");
_Static_assert(MGC_WHEEL_LEVELS * MGC_WHEEL_DIGIT > 64 - MGC_WHEEL_TICK_LOG2, "no time is beyond the last level");

struct mgc_wheel *mgc_wheel_make(uint64_t now) {
    struct mgc_wheel *wheel = calloc(1, sizeof *wheel);
    if (wheel) {
        wheel->time = now >> MGC_WHEEL_TICK_LOG2;
        mgc_wheel_clear(wheel);
    }
    return wheel;
}

void mgc_wheel_free(struct mgc_wheel *wheel) {
    if (wheel)
        free(wheel->links);
    free(wheel);
}

void mgc_wheel_clear(struct mgc_wheel *wheel) {
    memset(wheel->occupied, 0, sizeof wheel->occupied);
    memset(wheel->first, 0xff, sizeof wheel->first); /* MGC_WHEEL_NONE */
}

static int has_room(struct mgc_wheel *wheel, uint32_t slot, uint32_t room) {
    if (slot < wheel->room)
        return 1;
    struct mgc_wheel_link *links = realloc(wheel->links, room * sizeof *links);
    if (!links)
        return 0;
    memset(links + wheel->room, 0xff, (room - wheel->room) * sizeof *links); /* not in the wheel */
    wheel->links = links;
    wheel->room = room;
    return 1;
}

int mgc_wheel_add(struct mgc_wheel *wheel, uint32_t slot, uint64_t when, uint32_t room) {
    if (slot >= MGC_WHEEL_FIRST || !has_room(wheel, slot, room))
        return -1;
    uint64_t tick = (when >> MGC_WHEEL_TICK_LOG2) + 1; /* rounded up: what a place hands out at its time is due */
    uint64_t differs = (tick ^ wheel->time) | 1;
    unsigned level = (63u - (unsigned)__builtin_clzll(differs)) / MGC_WHEEL_DIGIT;
    unsigned digit = tick >> level * MGC_WHEEL_DIGIT & (MGC_WHEEL_PLACES - 1);
    uint32_t place = level * MGC_WHEEL_PLACES + digit, next = wheel->first[place];
    wheel->links[slot] = (struct mgc_wheel_link){next, MGC_WHEEL_FIRST + place};
    if (next != MGC_WHEEL_NONE)
        wheel->links[next].prev = slot;
    wheel->first[place] = slot;
    wheel->occupied[level] |= 1ull << digit;
    return 0;
}

void mgc_wheel_remove(struct mgc_wheel *wheel, uint32_t slot) {
    if (!wheel || slot >= wheel->room || wheel->links[slot].prev == MGC_WHEEL_NONE)
        return;
    struct mgc_wheel_link *link = &wheel->links[slot];
    if (link->next != MGC_WHEEL_NONE)
        wheel->links[link->next].prev = link->prev;
    if (link->prev < MGC_WHEEL_FIRST) {
        wheel->links[link->prev].next = link->next;
    } else {
        uint32_t place = link->prev - MGC_WHEEL_FIRST;
        wheel->first[place] = link->next;
        if (link->next == MGC_WHEEL_NONE)
            wheel->occupied[place / MGC_WHEEL_PLACES] &= ~(1ull << place % MGC_WHEEL_PLACES);
    }
    link->prev = MGC_WHEEL_NONE;
}

void mgc_wheel_forget(struct mgc_wheel *wheel, uint32_t slot) {
    if (wheel && slot < wheel->room)
        wheel->links[slot].prev = MGC_WHEEL_NONE;
}

/* The place that comes first, and the tick at which it does. No level is turned round: a place that lies behind the wheel's
 * time is of what was added too late, or it has just been come to and is not empty yet. */
static int next_place(const struct mgc_wheel *wheel, uint32_t *place, uint64_t *tick) {
    int found = 0;
    for (unsigned level = 0; level < MGC_WHEEL_LEVELS; level++) {
        if (!wheel->occupied[level])
            continue;
        unsigned digit = (unsigned)__builtin_ctzll(wheel->occupied[level]), shift = level * MGC_WHEEL_DIGIT;
        uint64_t turn = wheel->time >> shift >> MGC_WHEEL_DIGIT << MGC_WHEEL_DIGIT << shift;
        uint64_t begins = turn | (uint64_t)digit << shift;
        if (!found || begins < *tick) {
            *place = level * MGC_WHEEL_PLACES + digit;
            *tick = begins;
            found = 1;
        }
    }
    return found;
}

uint32_t mgc_wheel_pop(struct mgc_wheel *wheel, uint64_t now) {
    uint32_t place;
    uint64_t tick, until = now >> MGC_WHEEL_TICK_LOG2;
    if (!next_place(wheel, &place, &tick) || tick > until) {
        if (until > wheel->time) /* nothing is in between: what is there keeps its places */
            wheel->time = until;
        return MGC_WHEEL_NONE;
    }
    if (tick > wheel->time)
        wheel->time = tick;
    uint32_t slot = wheel->first[place];
    mgc_wheel_remove(wheel, slot);
    return slot;
}

uint64_t mgc_wheel_next(const struct mgc_wheel *wheel) {
    uint32_t place;
    uint64_t tick;
    if (!next_place(wheel, &place, &tick))
        return UINT64_MAX;
    /* Beyond the last tick of 64 bits of ns lies what is due in the last. */
    return tick >> (64 - MGC_WHEEL_TICK_LOG2) ? UINT64_MAX - 1 : tick << MGC_WHEEL_TICK_LOG2;
}
