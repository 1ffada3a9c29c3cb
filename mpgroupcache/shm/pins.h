/* What pins demand of the writer, which is the evict rule: a block is given up by clearing its word (unpublish), and free
 * once a scan that comes after a fence finds no pin that names it (retire). Until then it waits, in `retiring` for the
 * next scan, and in limbo where a pin was seen.
 *
 * Replacing, removing, evicting and adopting give blocks up: so this lies below all of them.
 */
#ifndef MPGROUPCACHE_PINS_H
#define MPGROUPCACHE_PINS_H

#include "state.h"

/* Gathers the pins of all regions in control->pins, of which mgc_pinned() then tells. What a scan guarantees depends on
 * the fence in front of it: the caller's. */
void mgc_control_scan(struct mgc_control *control);
int mgc_pinned(const struct mgc_control *control, uint32_t arena, uint64_t offset);
/* Whether any pin names a place in the range. Looks at all pins. */
int mgc_pinned_within(const struct mgc_control *control, uint32_t arena, uint64_t from, uint64_t to);

/* Takes an entry out of index, list and wheel. The block goes to `retiring`. */
void mgc_unpublish(struct mgc_arena *arena, uint32_t slot, _Atomic uint64_t *place, uint64_t word);
/* The second half of the evict rule: frees the blocks in `retiring` and limbo that no pin names. */
void mgc_retire(struct mgc_arena *arena);
int mgc_offsets_add(struct mgc_offsets *offsets, uint64_t offset);

#endif
