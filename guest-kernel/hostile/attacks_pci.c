// SPDX-License-Identifier: GPL-2.0
/* Attacks by configuration space, which is in memory (ECAM), and by where BARs are. */
#include <linux/io.h>

#include "targets.h"

#define NUM_ROUNDS	8
#define STEPS_PER_ROUND	250
#define ECAM_FUNCTION_BYTES	4096
#define NUM_FUNCTIONS	256

/* Where a BAR in memory has no business: RAM, its end, holes, what others have. */
static const u32 memory_places[] = {
	0, 0x1000, 0x100000, 0x1000000, 0x7fff8000, 0xbfff8000, 0xdfff8000, 0xe0000000, 0xe00f8000,
	0xe0100000, 0xfec00000, 0xfee00000, 0xfffb8000, 0xffff8000, 0xffffffff,
};

/* The same for ports: those of the machine, of others, and behind all. */
static const u32 port_places[] = {
	0, 0x40, 0x60, 0x200, 0x300, 0x500, 0x600, 0xa00, 0xcf8, 0xc000, 0xcf00, 0xff00, 0xffff,
	0x10000, 0xffffff00,
};

static void __iomem *function(struct targets *targets, const struct target *target)
{
	return targets->ecam + target->pdev->devfn * ECAM_FUNCTION_BYTES;
}

static struct target *any_target(struct targets *targets, struct rnd_state *random)
{
	return &targets->target[below(random, targets->num)];
}

static u32 bar_value(struct targets *targets, struct rnd_state *random, bool is_io,
		     bool may_overlap)
{
	if (is_io)
		return port_places[below(random, ARRAY_SIZE(port_places))];
	if (may_overlap && below(random, 2))
		return any_target(targets, random)->header[PCI_BASE_ADDRESS_0 / sizeof(u32)];
	return memory_places[below(random, ARRAY_SIZE(memory_places))];
}

/* BARs are written whole: halves of them could be places where another function is. */
static void bar_step(struct targets *targets, const struct target *target,
		     struct rnd_state *random, bool may_overlap)
{
	u32 offset = PCI_BASE_ADDRESS_0 + 4 * below(random, 6);
	bool is_io = target->header[offset / sizeof(u32)] & PCI_BASE_ADDRESS_SPACE_IO;

	writel(bar_value(targets, random, is_io, may_overlap), function(targets, target) + offset);
}

/* Everywhere but in the BARs, which have to be as random as is allowed. */
static u32 any_register(const struct target *target, struct rnd_state *random, u32 len)
{
	const u32 chosen[] = {
		PCI_COMMAND, PCI_COMMAND, PCI_STATUS, PCI_CACHE_LINE_SIZE, PCI_ROM_ADDRESS,
		PCI_CAPABILITY_LIST, PCI_INTERRUPT_LINE, target->msix, target->msix + PCI_MSIX_FLAGS,
		target->msix + PCI_MSIX_FLAGS + 1,
	};
	u32 offset;

	do {
		if (below(random, 2))
			offset = chosen[below(random, ARRAY_SIZE(chosen))];
		else
			offset = below(random, below(random, 4) ? 256 : ECAM_FUNCTION_BYTES);
	} while (offset + len > PCI_BASE_ADDRESS_0 && offset < PCI_CARDBUS_CIS);
	return offset;
}

void targets_config_step(struct targets *targets, struct rnd_state *random, bool may_overlap)
{
	const struct target *target = any_target(targets, random);
	u32 len = 1 << below(random, 4), offset;

	switch (below(random, 8)) {
	case 0:
	case 1:
		bar_step(targets, target, random, may_overlap);
		break;
	case 2:
		/* Most functions are not there, and others end inside the access. */
		offset = below(random, TARGETS_ECAM_BYTES - sizeof(u64));
		if (below(random, 2))
			readl(targets->ecam + offset);
		else
			readq(targets->ecam + offset);
		break;
	case 3:
		/* BARs decode as the guest says: as much as possible. */
		writew(PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER,
		       function(targets, target) + PCI_COMMAND);
		break;
	default:
		offset = any_register(target, random, len);
		targets_write(function(targets, target) + offset,
			  below(random, 4) ? prandom_u32_state(random) : U64_MAX, len);
		break;
	}
}

/* Whoever is not there has to stay away, whatever is written to it. */
static void probe_absent(struct targets *targets)
{
	struct hostile *hostile = targets->hostile;
	bool is_there;
	u32 devfn;
	int i;

	for (devfn = 0; devfn < NUM_FUNCTIONS; devfn++) {
		void __iomem *config = targets->ecam + devfn * ECAM_FUNCTION_BYTES;

		for (i = 0, is_there = false; i < targets->num; i++)
			is_there |= targets->target[i].pdev->devfn == devfn;
		if (is_there)
			continue;
		writel(U32_MAX, config + PCI_COMMAND);
		writel(0xc0000000, config + PCI_BASE_ADDRESS_0);
		if (readl(config) != U32_MAX)
			hostile_fail(hostile, "absent function", devfn, -EEXIST);
	}
}

void hostile_attack_config(struct hostile *hostile)
{
	struct targets *targets = targets_find(hostile);
	int round, i;

	if (!targets)
		return;
	hostile_reset(hostile);
	probe_absent(targets);
	targets_check(targets, "absent functions", NUM_FUNCTIONS);
	for (round = 0; round < NUM_ROUNDS && !targets_are_lost(targets); round++) {
		for (i = 0; i < STEPS_PER_ROUND; i++) {
			targets_config_step(targets, &hostile->random, true);
			targets_rest(targets, i);
		}
		targets_check(targets, "configuration, round", round);
	}
	targets_release(targets);
}

/* All BARs of @target, each at all places, and reads and doorbells at the last one. */
static void move_bars(struct targets *targets, const struct target *target)
{
	void __iomem *config = function(targets, target);
	const u32 *places;
	u32 offset, num;
	bool is_io;
	int i;

	for (offset = PCI_BASE_ADDRESS_0; offset <= PCI_BASE_ADDRESS_5; offset += sizeof(u32)) {
		is_io = target->header[offset / sizeof(u32)] & PCI_BASE_ADDRESS_SPACE_IO;
		places = is_io ? port_places : memory_places;
		num = is_io ? ARRAY_SIZE(port_places) : ARRAY_SIZE(memory_places);
		for (i = 0; i < num; i++)
			writel(places[i], config + offset);
		for (i = 0; i < targets->num && !is_io; i++)
			writel(targets->target[i].header[PCI_BASE_ADDRESS_0 / sizeof(u32)],
			       config + offset);
	}
}

/* @target where @other was, which wants its place back while it is taken. */
static void take_place(struct targets *targets, const struct target *target,
		       const struct target *other)
{
	u32 place = other->header[PCI_BASE_ADDRESS_0 / sizeof(u32)];
	u32 command = other->header[PCI_COMMAND / sizeof(u32)];
	int i;

	writel(0, function(targets, other) + PCI_COMMAND);
	writel(place, function(targets, target) + PCI_BASE_ADDRESS_0);
	writew(command, function(targets, other) + PCI_COMMAND);
	/* Now these registers are those of @target. */
	for (i = 0; i < TARGET_MAX_QUEUES; i++)
		writew(i, other->registers + (other->kind ? TARGET_NOTIFY + 4 * i : 4 * i));
}

void hostile_attack_bars(struct hostile *hostile)
{
	struct targets *targets = targets_find(hostile);
	int i, j;

	if (!targets)
		return;
	hostile_reset(hostile);
	for (i = 0; i < targets->num && !targets_are_lost(targets); i++) {
		move_bars(targets, &targets->target[i]);
		targets_check(targets, "moved", i);
		for (j = 0; j < targets->num; j++) {
			if (j == i)
				continue;
			take_place(targets, &targets->target[i], &targets->target[j]);
			targets_restore(targets);
		}
		targets_check(targets, "took places", i);
	}
	targets_release(targets);
}
