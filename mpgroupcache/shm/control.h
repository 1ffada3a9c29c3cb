/* The control segment, as its writer has it: the group table, the regions of workers, and what dead ones counted. */
#ifndef MPGROUPCACHE_CONTROL_H
#define MPGROUPCACHE_CONTROL_H

#include "state.h"

/* Formats a control segment of MGC_CONTROL_SIZE and commits its first regions. 0, or a negative errno (ENOSPC). */
int mgc_control_format(struct mgc_control *control, uint8_t *base, int fd, const uint8_t boot_id[16]);
/* Takes over a control segment of MGC_CONTROL_SIZE whose coordinator is dead, with its regions, rows and totals. 0;
 * -EPROTO: another layout; -ESTALE: of another boot, or not LIVE; -EUCLEAN: damaged. Only the first changes anything. */
int mgc_control_adopt(struct mgc_control *control, uint8_t *base, int fd, const uint8_t boot_id[16]);
void mgc_control_close(struct mgc_control *control);
void mgc_control_retire(struct mgc_control *control);

/* Notes the time, as a sign of life. */
void mgc_control_stamp(struct mgc_control *control);
/* The last sign of life in a control segment of any layout, and in which boot. 0, or -EPROTO where it is none. */
int mgc_control_sign(int fd, uint8_t boot_id[16], uint64_t *alive);

/* Retires a segment of either kind and any layout that has no writer. It may be damaged: what has no magic is left alone. */
void mgc_segment_retire(int fd);

/* Adds a group's row. Its number, or -ENOSPC after MGC_MAX_GROUPS. */
int mgc_control_add_group(struct mgc_control *control, const uint8_t *name, size_t length, uint64_t budget);

uint32_t mgc_control_groups(const struct mgc_control *control);
const struct mgc_group_row *mgc_control_group(const struct mgc_control *control, uint32_t group);

/* Begins a change of a group's values: raises the count that whoever shares what it has loaded looks at, and returns it. */
uint64_t mgc_control_raise_changes(struct mgc_control *control, uint32_t group);
uint64_t mgc_control_changes(const struct mgc_control *control, uint32_t group);

/* Notes what is counted of a group, which is about to be cleared. */
void mgc_control_note_clear(struct mgc_control *control, uint32_t group);

/* Moves the instance's clock, for tests. */
void mgc_control_advance(struct mgc_control *control, int64_t ns);

/* Regions of workers that were alive at the last reap. */
uint32_t mgc_control_attached(const struct mgc_control *control);

/* Counts a get that came from a peer. */
void mgc_control_count_request(struct mgc_control *control, uint32_t group);

/* Commits regions until at least `spare` are free above all claimed ones (a fork needs one above its own), and returns how
 * many are; fewer only when memory or numbers are out. */
uint32_t mgc_control_spare_regions(struct mgc_control *control, uint32_t spare);

/* Frees the regions of workers that are gone, and returns their number. */
uint32_t mgc_control_reap(struct mgc_control *control);

#endif
