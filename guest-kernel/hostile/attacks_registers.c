// SPDX-License-Identifier: GPL-2.0
/* Attacks by what is in BARs: registers of virtio and of the connector, vectors, doorbells. */
#include <linux/io.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "targets.h"

#define NUM_ROUNDS	6
#define STEPS_PER_ROUND	350
/* Behind the common configuration, too. */
#define COMMON_END	(VIRTIO_PCI_COMMON_Q_USEDHI + 12)

/* Half of an address: of our data, of no RAM, or 0, where nothing is that anybody uses. */
static u32 half_addr(const struct target *target, struct rnd_state *random)
{
	static const u32 chosen[] = {
		0, 0, 0, 1, 0x7fffffff, 0x80000000, 0xbffffff0, 0xc0000000, 0xe0000000, 0xfec00000,
		0xfee00000, 0xfffff000, 0xfffffff0, 0xffffffff,
	};

	switch (below(random, 4)) {
	case 0:
		/* Rings end in the area, whatever their sizes, and have their alignment mostly. */
		return target_addr(target, TARGET_DATA + below(random, 0x1000) * 4);
	case 1:
		return hostile_beyond() - (below(random, 2) ? 4 : 0);
	default:
		return chosen[below(random, ARRAY_SIZE(chosen))];
	}
}

/* A number that means something, or none. */
static u32 any_number(struct rnd_state *random)
{
	switch (below(random, 4)) {
	case 0:
		return below(random, 20);
	case 1:
		return 1U << below(random, 32);
	case 2:
		return U32_MAX - below(random, 2);
	default:
		return prandom_u32_state(random);
	}
}

/* An interrupt that goes to processor 64 or above in physical mode, whatever else it is. */
static u64 any_message_addr(struct rnd_state *random)
{
	u32 low = prandom_u32_state(random) & ~0xff00cU;

	return (u64)any_number(random) << 32 | low | (0x40 + below(random, 0xbf)) << 12;
}

static void vector_step(struct target *target, struct rnd_state *random)
{
	u32 idx = below(random, target->num_vectors + 2);
	void __iomem *entry = target->vectors + idx * PCI_MSIX_ENTRY_SIZE;

	if (idx >= target->num_vectors) {
		/* Pending bits, maybe, and what is nothing. */
		targets_write(target->vectors + target->num_vectors * PCI_MSIX_ENTRY_SIZE +
			      below(random, TARGET_VECTORS_BYTES - sizeof(u64) -
				    target->num_vectors * PCI_MSIX_ENTRY_SIZE),
			      any_number(random), 1 << below(random, 4));
		readq(target->vectors + below(random, TARGET_VECTORS_BYTES - sizeof(u64)));
		return;
	}
	switch (below(random, 4)) {
	case 0:
		writeq(any_message_addr(random), entry + PCI_MSIX_ENTRY_LOWER_ADDR);
		break;
	case 1:
		writel(any_message_addr(random), entry + PCI_MSIX_ENTRY_LOWER_ADDR);
		writel(any_number(random), entry + PCI_MSIX_ENTRY_UPPER_ADDR);
		break;
	case 2:
		writel(any_number(random), entry + PCI_MSIX_ENTRY_DATA);
		break;
	case 3:
		/* A function-level reset of the connector makes its messages go to the first processor. */
		writel(target->kind ? below(random, 2) : PCI_MSIX_ENTRY_CTRL_MASKBIT,
		       entry + PCI_MSIX_ENTRY_VECTOR_CTRL);
		break;
	}
	pci_write_config_word(target->pdev, target->msix + PCI_MSIX_FLAGS,
			      below(random, 4) << 14 | below(random, 0x4000));
}

/* What may be taken for the address of a call is one of ours, or none. */
static void connector_step(struct target *target, struct rnd_state *random)
{
	u32 offset, len = 1 << below(random, 4);

	switch (below(random, 4)) {
	case 0:
		offset = offsetof(struct vbus_pci_registers, call);
		len = sizeof(u64);
		break;
	case 1:
		offset = offsetof(struct vbus_pci_registers, reset) + below(random, 16);
		break;
	default:
		offset = below(random, VBUS_PCI_REGISTERS_BAR_BYTES - 8);
		break;
	}
	targets_write(target->registers + offset,
		      (u64)half_addr(target, random) << 32 | half_addr(target, random), len);
	readl(target->registers + offset);
}

static void common_step(struct target *target, struct rnd_state *random)
{
	static const u8 status[] = { 0, 0, 1, 3, 8, 0xb, 0xf, 0xf, 0x40, 0x80, 0xff };
	u32 len = 1 << below(random, 4), offset = below(random, COMMON_END);
	u64 value = (u64)any_number(random) << 32 | any_number(random);

	if (below(random, 4) == 0) {
		writeb(status[below(random, sizeof(status))],
		       target->registers + VIRTIO_PCI_COMMON_STATUS);
		return;
	}
	if (below(random, 2))
		offset &= ~(len - 1);
	if (offset + len > VIRTIO_PCI_COMMON_Q_DESCLO)
		value = (u64)half_addr(target, random) << 32 | half_addr(target, random);
	targets_write(target->registers + offset, value, len);
}

void target_register_step(struct target *target, struct rnd_state *random)
{
	u32 len = 1 << below(random, 4);

	switch (below(random, 12)) {
	case 0:
		vector_step(target, random);
		return;
	case 1:
		readq(target->registers + below(random, VBUS_PCI_REGISTERS_BAR_BYTES - 8));
		return;
	}
	if (!target->kind) {
		connector_step(target, random);
		return;
	}
	switch (below(random, 16)) {
	case 0:
	case 1:
	case 2:
		/* Any queue and none. */
		targets_write(target->registers + TARGET_NOTIFY + below(random, 0x1000 - 8),
			  any_number(random), len);
		break;
	case 3:
		targets_write(target->registers + TARGET_DEVICE + below(random, 80), any_number(random),
			  len);
		break;
	case 4:
		/* Pending bits, interrupt status and what is nothing. */
		targets_write(target->registers + TARGET_BAR_BYTES - 8 - below(random, 0x3000),
			  any_number(random), len);
		break;
	case 5:
		readq(target->registers + below(random, TARGET_BAR_BYTES - 8));
		break;
	case 6:
		target_start(target, prandom_u32_state(random) | TARGET_FEATURES);
		break;
	default:
		common_step(target, random);
		break;
	}
}

void hostile_attack_registers(struct hostile *hostile)
{
	struct targets *targets = targets_find(hostile);
	int round, i;

	if (!targets)
		return;
	hostile_reset(hostile);
	for (round = 0; round < NUM_ROUNDS && !targets_are_lost(targets); round++) {
		for (i = 0; i < STEPS_PER_ROUND; i++) {
			target_register_step(&targets->target[i % targets->num], &hostile->random);
			targets_rest(targets, i);
		}
		targets_check(targets, "registers, round", round);
	}
	targets_release(targets);
}

