/* What the coordinator does with the segments. It is one thread, and the only writer of every arena.
 *
 * Guarantees: a block that a reader has pinned is neither changed nor reused; a word is never moved in place; what is
 * committed is enough for every published block; a value that cannot fit evicts nothing.
 * This code assumes that calls do not overlap, and that its caller holds the control segment's writer lock.
 *
 * Here are its floors, from the ground up. Calls only go down: what several files need lies below all of them. Each file
 * includes the headers of what it calls, and never this one, which is for whoever stands above.
 */
#ifndef MPGROUPCACHE_WRITER_H
#define MPGROUPCACHE_WRITER_H

#include "ages.h"  /* what is stale, dead, or kept */
#include "heap.h"  /* blocks of an arena */
#include "wheel.h" /* what will be due */
#include "state.h" /* the coordinator's private memory */

#include "space.h" /* where the parts of an arena lie; committing memory */

#include "control.h" /* the control segment: groups and regions */
#include "index.h"   /* words of the index */
#include "lru.h"     /* slots, and their order */

#include "pins.h"    /* giving blocks up */
#include "touches.h" /* hits of workers */

#include "reclaim.h" /* giving back what is dead */

#include "evict.h" /* making room: victims, or more memory */

#include "arena.h" /* an arena, as it is used: reserve, publish, find, remove */

#include "adopt.h" /* taking over from a dead coordinator */
#include "check.h" /* whether all of this is sound */

#endif
