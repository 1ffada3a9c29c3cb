/* Allocator of an arena's blocks: two-level segregated fit with immediate coalescing, at MGC_GRANULE.
 *
 * Its state beside the blocks themselves is private to the writer. Blocks lie without gaps from `start` to `end`; each
 * knows its own size and that of its predecessor. Two free blocks are neighbours only where one could not be so large.
 */
#ifndef MPGROUPCACHE_HEAP_H
#define MPGROUPCACHE_HEAP_H

#include "words.h"

#define MGC_HEAP_SL_LOG2 5u
#define MGC_HEAP_SL (1u << MGC_HEAP_SL_LOG2)
#define MGC_HEAP_FL 28u
#define MGC_HEAP_MAX_GRANULES (1u << 31)                                         /* of a free block: 32 GiB */
#define MGC_HEAP_MAX_BYTES ((uint64_t)MGC_HEAP_MAX_GRANULES / 2 * MGC_GRANULE) /* of one that is asked for */

struct mgc_heap {
    uint8_t *base;       /* of the segment; all offsets count from it */
    uint64_t start, end; /* the committed range of blocks */
    uint64_t used;       /* bytes in blocks that are not free */
    uint64_t last;       /* the block that ends at `end`; 0: none */
    uint32_t first_levels;
    uint32_t second_levels[MGC_HEAP_FL];
    uint64_t free_lists[MGC_HEAP_FL][MGC_HEAP_SL]; /* offsets in granules; 0: empty */
};

void mgc_heap_init(struct mgc_heap *heap, uint8_t *base, uint64_t start);

/* Adds `bytes` of committed memory at `end`; a multiple of the granule. */
void mgc_heap_extend(struct mgc_heap *heap, uint64_t bytes);

/* Returns the offset of a block of at least `bytes`, header included, with slot MGC_SLOT_NONE; 0: no room. */
uint64_t mgc_heap_alloc(struct mgc_heap *heap, uint64_t bytes);

void mgc_heap_free(struct mgc_heap *heap, uint64_t offset);

/* Builds the heap of blocks that are there already: the next block, at `end`, has `bytes` and belongs to `slot`; with
 * MGC_SLOT_FREE it is a free one, or several where one could not be so large. */
void mgc_heap_lay(struct mgc_heap *heap, uint64_t bytes, uint32_t slot);

static inline struct mgc_block *mgc_heap_block(const struct mgc_heap *heap, uint64_t offset) {
    return (struct mgc_block *)(heap->base + offset);
}

static inline uint64_t mgc_block_bytes(const struct mgc_block *block) { return (uint64_t)block->size * MGC_GRANULE; }

/* The neighbours of a block; 0: none. */
static inline uint64_t mgc_heap_next(const struct mgc_heap *heap, uint64_t offset) {
    uint64_t next = offset + mgc_block_bytes(mgc_heap_block(heap, offset));
    return next < heap->end ? next : 0;
}

static inline uint64_t mgc_heap_prev(const struct mgc_heap *heap, uint64_t offset) {
    uint32_t size = mgc_heap_block(heap, offset)->prev_size;
    return size ? offset - (uint64_t)size * MGC_GRANULE : 0;
}

#endif
