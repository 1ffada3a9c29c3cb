/* What the ages of an entry say: the instance's clock, and when an entry is stale, dead, or of no use any more. No state.
 *
 * An entry is fresh until `fresh_until`, then stale, and dead from `dead_at` on: a miss, whoever looks. A dead one is kept
 * for as long as the group's stale_if_error says, in case that its load fails; when that has passed, too, it is reclaimed.
 */
#ifndef MPGROUPCACHE_AGES_H
#define MPGROUPCACHE_AGES_H

#include "words.h"

/* Times that are told are relative to now, in ns. What lies further ahead than this is for ever: 146 years. */
#define MGC_LONGEST (1ll << 62)
#define MGC_EVER INT64_MAX

/* Now. CLOCK_BOOTTIME goes on while the machine sleeps, and is nobody's to set. */
static inline uint64_t mgc_clock(const struct mgc_control_header *control) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec +
           atomic_load_explicit(&control->clock_offset, memory_order_relaxed);
}

/* The time that lies `left` ns ahead: MGC_FOREVER for what is for ever, or would be beyond the end of the clock. */
static inline uint64_t mgc_time_at(uint64_t now, int64_t left) {
    uint64_t at = now + (uint64_t)left;
    if (left >= MGC_LONGEST || (left >= 0 && at < now))
        return MGC_FOREVER;
    return left < 0 && at > now ? 0 : at;
}

/* How many ns are left until a time; less than 0 where it has passed, and 0 now. */
static inline int64_t mgc_time_left(uint64_t now, uint64_t at) {
    uint64_t apart = at > now ? at - now : now - at;
    if (at == MGC_FOREVER)
        return MGC_EVER;
    if (apart > MGC_LONGEST)
        apart = MGC_LONGEST;
    return at > now ? (int64_t)apart : -(int64_t)apart;
}

static inline int mgc_is_stale(const struct mgc_ages *ages, uint64_t now) {
    return atomic_load_explicit(&ages->fresh_until, memory_order_relaxed) <= now;
}

static inline int mgc_is_dead(const struct mgc_ages *ages, uint64_t now) {
    return atomic_load_explicit(&ages->dead_at, memory_order_relaxed) <= now;
}

/* Until when an entry is kept, at least: nobody stores it, since the group may be declared anew. */
static inline uint64_t mgc_kept_until(const struct mgc_ages *ages, uint64_t stale_if_error) {
    uint64_t fresh = atomic_load_explicit(&ages->fresh_until, memory_order_relaxed);
    uint64_t dead = atomic_load_explicit(&ages->dead_at, memory_order_relaxed);
    uint64_t kept = fresh + stale_if_error < fresh ? MGC_FOREVER : fresh + stale_if_error;
    return kept > dead ? kept : dead;
}

#endif
