/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A driver of "page-hints" that lies about pages and breaks the rules.
 *
 * main.c	connects, as a driver that follows the rules
 * words.c	wrong words, from all processors, until the module is unloaded
 * blocks.c	wrong releases and calls, each over when the module is loaded
 */
#ifndef HINTS_HOSTILE_H
#define HINTS_HOSTILE_H

#include <linux/prandom.h>
#include <linux/sched.h>
#include <linux/types.h>

#include <alacrity/vbus.h>

#define LIAR_MAX_DISKS		2

/**
 * struct liar_place - where the bytes of a page of a file are
 * @pfn: the page
 * @sector: of the first disk
 */
struct liar_place {
	u64 pfn;
	u64 sector;
};

/**
 * struct liar - a connection
 * @vdev: the bus's side
 * @num_pages: up to the end of RAM
 * @release_bytes: of the smallest block
 * @events: ring without a slot for events
 * @release: release ring
 * @tables: of all pages
 * @num_tables: length of @tables
 * @num_sectors: of each disk; the slot of the first one is 1
 * @num_disks: that the host knows
 * @places: of the pages of a file that are in its cache
 * @num_places: length of @places
 * @kinds: LIAR_* that are told
 * @threads: that tell them
 * @random: from the seed
 */
struct liar {
	struct vbus_device *vdev;
	u64 num_pages;
	u32 release_bytes;
	struct vbus_ring *events;
	struct vbus_ring *release;
	struct vbus_shm *tables;
	u32 num_tables;
	u64 num_sectors[LIAR_MAX_DISKS];
	u32 num_disks;
	struct liar_place *places;
	u32 num_places;
	u32 kinds;
	struct task_struct *threads[NR_CPUS];
	struct rnd_state random;
};

/* main.c */
u64 liar_random(struct rnd_state *state);

/* words.c; 0 if @mode is not one of words. */
u32 liar_kinds(const char *mode);
int liar_find_places(struct liar *liar, const char *path);
void liar_begin(struct liar *liar, ulong seed);
void liar_end(struct liar *liar);

/* blocks.c; what came of it is in the kernel log. False: @mode is none of these. */
bool liar_attack(struct liar *liar, const char *mode);

#endif /* HINTS_HOSTILE_H */
