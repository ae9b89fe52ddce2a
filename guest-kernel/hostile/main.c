// SPDX-License-Identifier: GPL-2.0
/*
 * insmod vbus_hostile.ko mode=rings seed=1 rounds=20 steps=2000
 *
 * Needs the connector for itself: unload vbus_pci first. The attack is over when insmod returns;
 * the kernel log says what came of it, and whether the connector did not work again after a
 * round, which would be the host's fault.
 */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "hostile.h"

static char *mode = "rings";
module_param(mode, charp, 0444);
MODULE_PARM_DESC(mode, "verbs, rings, segments, doorbells, reset, handles or events");
static uint seed = 1;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "where the random numbers begin");
static uint rounds = 10;
module_param(rounds, uint, 0444);
MODULE_PARM_DESC(rounds, "times that the connector is set up and attacked");
static uint steps = 1000;
module_param(steps, uint, 0444);
MODULE_PARM_DESC(steps, "of each thread in a round");
static uint threads = 2;
module_param(threads, uint, 0444);
MODULE_PARM_DESC(threads, "that attack at a time, at most 8");

#define MAX_THREADS 8

struct worker {
	struct attacker attacker;
	const struct attack *attack;
	struct completion done;
};

static int attack_thread(void *data)
{
	struct worker *worker = data;
	uint step;

	for (step = 0; step < steps; step++) {
		worker->attack->step(&worker->attacker);
		if (step % 64 == 0)
			cond_resched();
	}
	complete(&worker->done);
	return 0;
}

static int prepare(struct hostile *hostile, struct vbus_pci_call *call,
		   const struct attack *attack)
{
	int status = hostile_start(hostile, call, !attack->starves_events);

	if (status >= 0 && attack->needs == NEEDS_LINK)
		status = hostile_open(hostile, call);
	if (status >= 0 && attack->needs == NEEDS_LINK)
		status = hostile_link_up(hostile, call);
	return status;
}

static int attack_all(struct hostile *hostile, const struct attack *attack,
		      struct worker *workers, uint num_threads)
{
	u64 num_actions = 0, num_refused = 0;
	uint round, i, num_drops = 0;
	int status;

	for (round = 0; round < rounds; round++) {
		status = prepare(hostile, workers[0].attacker.call, attack);
		if (status < 0) {
			pr_err("vbus_hostile: round %u: the connector does not come up: %d\n",
			       round, status);
			return status;
		}
		for (i = 0; i < num_threads; i++) {
			struct task_struct *task;

			workers[i].attacker.num_actions = 0;
			workers[i].attacker.num_refused = 0;
			prandom_seed_state(&workers[i].attacker.random,
					   seed + round * MAX_THREADS + i);
			init_completion(&workers[i].done);
			task = kthread_run(attack_thread, &workers[i], "hostile/%u", i);
			if (IS_ERR(task))
				complete(&workers[i].done);
		}
		for (i = 0; i < num_threads; i++) {
			wait_for_completion(&workers[i].done);
			num_actions += workers[i].attacker.num_actions;
			num_refused += workers[i].attacker.num_refused;
		}
		if (attack->needs == NEEDS_LINK)
			num_drops += hostile_was_dropped(hostile);
		hostile_reset(hostile);
	}
	pr_info("vbus_hostile: %s: %u rounds, %llu actions, %llu refused, %u cut off\n", mode,
		rounds, num_actions, num_refused, num_drops);
	return 0;
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
	hostile->buffer = alloc_pages_exact(HOSTILE_BUFFER_BYTES, gfp);
	complete &= hostile->rx && hostile->tx && hostile->pool && hostile->buffer;
	return complete ? 0 : -ENOMEM;
}

static int hostile_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	uint num_threads = clamp(threads, 1U, (uint)MAX_THREADS);
	const struct attack *attack = hostile_attack(mode);
	struct hostile *hostile;
	struct worker *workers;
	struct vbus_pci_call *calls;
	int status, i;

	if (!attack)
		return dev_err_probe(&pdev->dev, -EINVAL, "unknown mode %s\n", mode);
	hostile = kzalloc(sizeof(*hostile), GFP_KERNEL);
	workers = kcalloc(num_threads, sizeof(*workers), GFP_KERNEL);
	calls = (void *)get_zeroed_page(GFP_KERNEL);
	if (!hostile || !workers || !calls) {
		status = -ENOMEM;
		goto free;
	}
	hostile->pdev = pdev;
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
	for (i = 0; i < num_threads; i++) {
		workers[i].attack = attack;
		workers[i].attacker.hostile = hostile;
		workers[i].attacker.call = &calls[i];
	}
	status = attack_all(hostile, attack, workers, num_threads);
	hostile_reset(hostile);
	iounmap(hostile->registers);
disable:
	pci_disable_device(pdev);
free_memory:
	free_memory(hostile);
free:
	free_page((unsigned long)calls);
	kfree(workers);
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
