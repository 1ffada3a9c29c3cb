/* What will be due, and when: a hierarchical timing wheel of slots.
 *
 * Its unit is a tick of 2^20 ns. A slot that is due at tick `when` is on the level of the highest digit, of six bits, in
 * which `when` differs from the wheel's own time, in the place of that digit: so what is due in the next 64 ticks is in the
 * places of level 0, and what comes within 64 times as long in those of level 1. As the wheel's time goes on it comes to
 * places of higher levels, whose slots then move down. To add, to remove and to find what is next takes a few
 * steps, whatever is in the wheel and however long nobody has looked.
 *
 * The wheel does not note when a slot is due. Its owner knows, and tells it with each one that is added: pop() hands out
 * the slots of the next place that has come, and those that are not due yet are added again.
 */
#ifndef MPGROUPCACHE_WHEEL_H
#define MPGROUPCACHE_WHEEL_H

#include <stdint.h>

#define MGC_WHEEL_TICK_LOG2 20u
#define MGC_WHEEL_DIGIT 6u
#define MGC_WHEEL_PLACES (1u << MGC_WHEEL_DIGIT)
#define MGC_WHEEL_LEVELS 8u /* of times of 64 bits there are 44 bits of ticks, and one more, since they are rounded up */

#define MGC_WHEEL_NONE 0xffffffffu
#define MGC_WHEEL_FIRST 0xfffffc00u /* in place of a slot: the place itself; slots from here on are never in a wheel */

struct mgc_wheel {
    uint64_t time; /* in ticks */
    uint64_t occupied[MGC_WHEEL_LEVELS]; /* bit i: there is something in place i */
    uint32_t first[MGC_WHEEL_LEVELS * MGC_WHEEL_PLACES];
    struct mgc_wheel_link {
        uint32_t next; /* of the same place, or MGC_WHEEL_NONE */
        uint32_t prev; /* likewise; the first one's is its place, and MGC_WHEEL_NONE says that the slot is not in the wheel */
    } *links;
    uint32_t room;
};

/* An empty wheel, or NULL without memory. */
struct mgc_wheel *mgc_wheel_make(uint64_t now);
void mgc_wheel_free(struct mgc_wheel *wheel);
/* Forgets all that is in it, in no time. Each slot that was has to be forgotten one by one before it is added again. */
void mgc_wheel_clear(struct mgc_wheel *wheel);

/* Adds a slot that is not in the wheel; `room`: how many slots there may be. -1: no memory, and it is not in it. Times are in ns. */
int mgc_wheel_add(struct mgc_wheel *wheel, uint32_t slot, uint64_t when, uint32_t room);
/* Takes a slot out, if it is in the wheel. */
void mgc_wheel_remove(struct mgc_wheel *wheel, uint32_t slot);
/* Notes that a slot is not in the wheel, which was cleared since it was added. */
void mgc_wheel_forget(struct mgc_wheel *wheel, uint32_t slot);

/* Takes out a slot that may be due at `now`. If it is not, it is to be added again. MGC_WHEEL_NONE: there is none, and all
 * that is added from then on counts from `now`. */
uint32_t mgc_wheel_pop(struct mgc_wheel *wheel, uint64_t now);
/* No slot is popped before this time; UINT64_MAX: the wheel is empty. */
uint64_t mgc_wheel_next(const struct mgc_wheel *wheel);

#endif
