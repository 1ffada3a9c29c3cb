/* The hits of workers: out of their regions, into the order of entries and the rates. */
#ifndef MPGROUPCACHE_TOUCHES_H
#define MPGROUPCACHE_TOUCHES_H

#include "state.h"

/* Brings the touches of all regions into the LRU lists, in their order in time, and counts them in the rates, as of
 * control->now. Returns how many there were. */
size_t mgc_control_drain(struct mgc_control *control);

/* The same for a choice of victims, unless that is put off. Of many busy workers each drain finds all rings full, and those
 * of victims would be all that a coordinator does. To put one off costs the order of entries alone: hits since the last
 * drain do not count yet, and the coordinator's own drains come regularly. What keeps views whole are pins, not touches. */
void mgc_control_drain_for_victims(struct mgc_control *control);

/* When that is: while drains have taken a tenth of the last 100 ms. Both take mgc_nanoseconds(), and have no clock. Each
 * drain moves `drains_paid` up by ten times what it took: at that time drains will have been a tenth of all. */
#define MGC_DRAINS_SHARE 10u
#define MGC_DRAINS_SPAN 100000000ull

static inline int mgc_drain_is_put_off(const struct mgc_control *control, uint64_t now) {
    return control->drains_paid >= now + MGC_DRAINS_SPAN;
}

static inline void mgc_drain_took(struct mgc_control *control, size_t touches, uint64_t begun, uint64_t ended) {
    uint64_t from = control->drains_paid, most = begun + MGC_DRAINS_SPAN, took = ended - begun;
    if (touches < MGC_TOUCHES) /* less than one full ring is quick: if it took long, others had the processor */
        return;
    if (from < begun)
        from = begun;
    if (from > most) /* regular drains, which are not put off: what they take is not owed for ever */
        from = most;
    if (took > MGC_DRAINS_SPAN) /* a process that was stopped meanwhile has not drained for so long */
        took = MGC_DRAINS_SPAN;
    control->drains_paid = from + MGC_DRAINS_SHARE * took;
}

#endif
