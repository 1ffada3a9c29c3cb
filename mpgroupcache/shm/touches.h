/* The hits of workers: out of their regions, into the order of entries and the rates. */
#ifndef MPGROUPCACHE_TOUCHES_H
#define MPGROUPCACHE_TOUCHES_H

#include "state.h"

/* Brings the touches of all regions into the LRU lists, in their order in time, and counts them in the rates, as of
 * control->now. Returns how many there were. */
size_t mgc_control_drain(struct mgc_control *control);

#endif
