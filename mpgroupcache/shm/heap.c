#include "heap.h"

#define MIN_GRANULES ((uint32_t)(sizeof(struct mgc_block) / MGC_GRANULE))
#define OWN_CLASS_LOOKS 16 /* blocks of a request's own size class that are looked at when no larger class has one */

struct size_class {
    uint32_t first, second;
};

static unsigned log2_of(uint32_t n) { return 31u - (unsigned)__builtin_clz(n); }

static struct size_class class_of(uint32_t granules) {
    if (granules < MGC_HEAP_SL)
        return (struct size_class){0, granules};
    unsigned log2 = log2_of(granules);
    return (struct size_class){log2 - MGC_HEAP_SL_LOG2 + 1, granules >> (log2 - MGC_HEAP_SL_LOG2) & (MGC_HEAP_SL - 1)};
}

static void push_free(struct mgc_heap *heap, uint64_t offset) {
    struct mgc_block *block = mgc_heap_block(heap, offset);
    struct size_class class = class_of(block->size);
    uint64_t *head = &heap->free_lists[class.first][class.second], here = offset / MGC_GRANULE;
    block->slot = MGC_SLOT_FREE;
    block->prev_free = 0;
    block->next_free = *head;
    if (*head)
        mgc_heap_block(heap, *head * MGC_GRANULE)->prev_free = here;
    *head = here;
    heap->first_levels |= 1u << class.first;
    heap->second_levels[class.first] |= 1u << class.second;
}

static void take_free(struct mgc_heap *heap, uint64_t offset) {
    struct mgc_block *block = mgc_heap_block(heap, offset);
    struct size_class class = class_of(block->size);
    if (block->next_free)
        mgc_heap_block(heap, block->next_free * MGC_GRANULE)->prev_free = block->prev_free;
    if (block->prev_free) {
        mgc_heap_block(heap, block->prev_free * MGC_GRANULE)->next_free = block->next_free;
    } else if ((heap->free_lists[class.first][class.second] = block->next_free) == 0) {
        heap->second_levels[class.first] &= ~(1u << class.second);
        if (heap->second_levels[class.first] == 0)
            heap->first_levels &= ~(1u << class.first);
    }
}

/* A free block of at least `granules`: the first of the first class in which every block is large enough; failing that,
 * one of its own class that happens to be. */
static uint64_t find_free(struct mgc_heap *heap, uint32_t granules) {
    uint32_t rounded = granules;
    if (granules >= MGC_HEAP_SL)
        rounded += (1u << (log2_of(granules) - MGC_HEAP_SL_LOG2)) - 1;
    struct size_class class = class_of(rounded);
    uint32_t second = class.first < MGC_HEAP_FL ? heap->second_levels[class.first] & ~0u << class.second : 0;
    if (!second && class.first + 1 < MGC_HEAP_FL) {
        uint32_t first = heap->first_levels & ~0u << (class.first + 1);
        if (first) {
            class.first = (uint32_t)__builtin_ctz(first);
            second = heap->second_levels[class.first];
        }
    }
    if (second)
        return heap->free_lists[class.first][__builtin_ctz(second)] * MGC_GRANULE;
    class = class_of(granules);
    uint64_t offset = heap->free_lists[class.first][class.second] * MGC_GRANULE;
    for (int looks = 0; offset && looks < OWN_CLASS_LOOKS; looks++) {
        struct mgc_block *block = mgc_heap_block(heap, offset);
        if (block->size >= granules)
            return offset;
        offset = block->next_free * MGC_GRANULE;
    }
    /* The last block may be in that class too, behind those. Whoever extends the heap relies on its being too small. */
    if (heap->last && mgc_heap_block(heap, heap->last)->slot == MGC_SLOT_FREE &&
        mgc_heap_block(heap, heap->last)->size >= granules)
        return heap->last;
    return 0;
}

static void set_size(struct mgc_heap *heap, uint64_t offset, uint32_t granules) {
    mgc_heap_block(heap, offset)->size = granules;
    uint64_t next = mgc_heap_next(heap, offset);
    if (next)
        mgc_heap_block(heap, next)->prev_size = granules;
    else
        heap->last = offset;
}

static int mergeable(const struct mgc_heap *heap, uint64_t offset, uint32_t with) {
    const struct mgc_block *block = mgc_heap_block(heap, offset);
    return block->slot == MGC_SLOT_FREE && (uint64_t)block->size + with <= MGC_HEAP_MAX_GRANULES;
}

/* Makes the block at `offset`, in no list, a free one, together with its free neighbours. */
static void add_free(struct mgc_heap *heap, uint64_t offset) {
    uint64_t next = mgc_heap_next(heap, offset), prev = mgc_heap_prev(heap, offset);
    uint32_t granules = mgc_heap_block(heap, offset)->size;
    if (next && mergeable(heap, next, granules)) {
        take_free(heap, next);
        granules += mgc_heap_block(heap, next)->size;
    }
    if (prev && mergeable(heap, prev, granules)) {
        take_free(heap, prev);
        granules += mgc_heap_block(heap, prev)->size;
        offset = prev;
    }
    set_size(heap, offset, granules);
    push_free(heap, offset);
}

void mgc_heap_init(struct mgc_heap *heap, uint8_t *base, uint64_t start) {
    memset(heap, 0, sizeof *heap);
    heap->base = base;
    heap->start = heap->end = start;
}

void mgc_heap_extend(struct mgc_heap *heap, uint64_t bytes) {
    while (bytes) {
        uint64_t part = bytes < MGC_HEAP_MAX_BYTES ? bytes : MGC_HEAP_MAX_BYTES;
        uint64_t offset = heap->end;
        struct mgc_block *block = mgc_heap_block(heap, offset);
        block->prev_size = heap->last ? mgc_heap_block(heap, heap->last)->size : 0;
        block->slot = MGC_SLOT_NONE;
        heap->end += part;
        set_size(heap, offset, (uint32_t)(part / MGC_GRANULE));
        add_free(heap, offset);
        bytes -= part;
    }
}

uint64_t mgc_heap_alloc(struct mgc_heap *heap, uint64_t bytes) {
    if (bytes > MGC_HEAP_MAX_BYTES)
        return 0;
    uint32_t granules = (uint32_t)((bytes + MGC_GRANULE - 1) / MGC_GRANULE);
    uint64_t offset = find_free(heap, granules);
    if (!offset)
        return 0;
    take_free(heap, offset);
    struct mgc_block *block = mgc_heap_block(heap, offset);
    block->slot = MGC_SLOT_NONE;
    uint32_t rest = block->size - granules;
    if (rest >= MIN_GRANULES) {
        uint64_t split = offset + (uint64_t)granules * MGC_GRANULE;
        struct mgc_block *tail = mgc_heap_block(heap, split);
        tail->prev_size = granules;
        tail->slot = MGC_SLOT_NONE;
        block->size = granules;
        set_size(heap, split, rest);
        push_free(heap, split); /* its successor is in use: free neighbours were merged before */
    }
    heap->used += mgc_block_bytes(block);
    return offset;
}

void mgc_heap_free(struct mgc_heap *heap, uint64_t offset) {
    heap->used -= mgc_block_bytes(mgc_heap_block(heap, offset));
    add_free(heap, offset);
}

void mgc_heap_lay(struct mgc_heap *heap, uint64_t bytes, uint32_t slot) {
    while (bytes) {
        /* No part is left that is no block. */
        int whole = slot != MGC_SLOT_FREE || bytes < MGC_HEAP_MAX_BYTES + sizeof(struct mgc_block);
        uint64_t part = whole ? bytes : MGC_HEAP_MAX_BYTES;
        uint64_t offset = heap->end;
        struct mgc_block *block = mgc_heap_block(heap, offset);
        block->prev_size = heap->last ? mgc_heap_block(heap, heap->last)->size : 0;
        block->size = (uint32_t)(part / MGC_GRANULE);
        block->slot = slot;
        heap->last = offset;
        heap->end += part;
        if (slot == MGC_SLOT_FREE)
            push_free(heap, offset);
        else
            heap->used += part;
        bytes -= part;
    }
}
