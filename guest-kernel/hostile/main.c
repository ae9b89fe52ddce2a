// SPDX-License-Identifier: GPL-2.0
/*
 * insmod vbus_hostile.ko mode=rings seed=1 pause=200
 *
 * Needs the connector for itself: unload vbus_pci first. Modes from "config" on need all virtio
 * functions as well: unbind virtio-pci. The attack is over when insmod returns; the kernel log says
 * what came of it.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "hostile.h"

static char *mode = "rings";
module_param(mode, charp, 0444);
MODULE_PARM_DESC(mode, "what to do, see the table in main.c");
static ulong seed = 1;
module_param(seed, ulong, 0444);
MODULE_PARM_DESC(seed, "where the random numbers begin");
static uint pause = 200;
module_param(pause, uint, 0444);
MODULE_PARM_DESC(pause, "microseconds after each case");

static const struct {
	const char *name;
	void (*run)(struct hostile *hostile);
} attacks[] = {
	{ "rings", hostile_attack_rings },
	{ "segments", hostile_attack_segments },
	{ "buffers", hostile_attack_buffers },
	{ "signals", hostile_attack_signals },
	{ "scribble", hostile_attack_scribble },
	{ "verbs", hostile_attack_verbs },
	{ "guesses", hostile_attack_guesses },
	{ "events", hostile_attack_events },
	{ "handles", hostile_attack_handles },
	{ "doorbells", hostile_attack_doorbells },
	{ "resets", hostile_attack_resets },
	{ "hoard", hostile_attack_hoard },
	{ "config", hostile_attack_config },
	{ "bars", hostile_attack_bars },
	{ "registers", hostile_attack_registers },
	{ "queues", hostile_attack_queues },
	{ "ports", hostile_attack_ports },
	{ "crowd", hostile_attack_crowd },
};

static int run_attack(struct hostile *hostile)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(attacks); i++) {
		if (strcmp(attacks[i].name, mode))
			continue;
		attacks[i].run(hostile);
		hostile_reset(hostile);
		pr_info("vbus_hostile: %s: seed %lu, %u cases: %u cut off, %u stopped, %u refused, %u harmless, %u failed\n",
			mode, seed, hostile->cases.tried, hostile->cases.cut_off,
			hostile->cases.stopped, hostile->cases.refused, hostile->cases.harmless,
			hostile->cases.failed);
		return 0;
	}
	return dev_err_probe(&hostile->pdev->dev, -EINVAL, "unknown mode %s\n", mode);
}

static void free_memory(struct hostile *hostile)
{
	int i;

	for (i = 0; i < VBUS_PCI_NUM_EVENT_QUEUES; i++)
		if (hostile->event_rings[i])
			free_page((unsigned long)hostile->event_rings[i]);
	if (hostile->rx)
		free_pages_exact(hostile->rx, HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS));
	if (hostile->tx)
		free_pages_exact(hostile->tx, HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS));
	free_page((unsigned long)hostile->pool);
	free_page((unsigned long)hostile->call);
	if (hostile->buffer)
		free_pages_exact(hostile->buffer, HOSTILE_BUFFER_BYTES);
}

static int allocate_memory(struct hostile *hostile)
{
	const gfp_t gfp = GFP_KERNEL | __GFP_ZERO;
	bool complete = true;
	int i;

	for (i = 0; i < VBUS_PCI_NUM_EVENT_QUEUES; i++) {
		hostile->event_rings[i] = (void *)__get_free_page(gfp);
		complete &= !!hostile->event_rings[i];
	}
	hostile->rx = alloc_pages_exact(HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS), gfp);
	hostile->tx = alloc_pages_exact(HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS), gfp);
	hostile->pool = (void *)__get_free_page(gfp);
	hostile->call = (void *)__get_free_page(gfp);
	hostile->buffer = alloc_pages_exact(HOSTILE_BUFFER_BYTES, gfp);
	complete &= hostile->rx && hostile->tx && hostile->pool && hostile->call &&
		    hostile->buffer;
	return complete ? 0 : -ENOMEM;
}

static int hostile_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct hostile *hostile = kzalloc(sizeof(*hostile), GFP_KERNEL);
	int status;

	if (!hostile)
		return -ENOMEM;
	hostile->pdev = pdev;
	hostile->pause = pause;
	prandom_seed_state(&hostile->random, seed);
	status = allocate_memory(hostile);
	if (status)
		goto free_memory;
	status = pci_enable_device(pdev);
	if (status)
		goto free_memory;
	pci_set_master(pdev);
	hostile->ports = pci_resource_start(pdev, VBUS_PCI_PORTS_BAR);
	hostile->registers = pci_ioremap_bar(pdev, VBUS_PCI_REGISTERS_BAR);
	if (!hostile->registers) {
		status = -ENOMEM;
		goto disable;
	}
	status = run_attack(hostile);
	iounmap(hostile->registers);
disable:
	pci_disable_device(pdev);
free_memory:
	free_memory(hostile);
	kfree(hostile);
	/* Nothing is left to hold: the attack is over. */
	return status < 0 ? status : -ENXIO;
}

static const struct pci_device_id hostile_ids[] = {
	{ PCI_DEVICE(VBUS_PCI_VENDOR_ID, VBUS_PCI_DEVICE_ID) },
	{}
};

static struct pci_driver hostile_driver = {
	.name = "vbus_hostile",
	.id_table = hostile_ids,
	.probe = hostile_probe,
};
module_pci_driver(hostile_driver);

MODULE_DESCRIPTION("Attacks the host through the virtual bus, for tests");
MODULE_LICENSE("GPL");
