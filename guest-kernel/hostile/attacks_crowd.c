// SPDX-License-Identifier: GPL-2.0
/* All attacks at once, from all processors. */
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/kthread.h>
#include <linux/slab.h>

#include "targets.h"

#define NUM_ROUNDS	2
/* Of each processor. */
#define STEPS_PER_ROUND	200

struct attacker {
	struct targets *targets;
	struct rnd_state random;
	struct completion done;
};

static int attack(void *data)
{
	struct attacker *attacker = data;
	struct targets *targets = attacker->targets;
	struct rnd_state *random = &attacker->random;
	struct target *target;
	int i;

	for (i = 0; i < STEPS_PER_ROUND; i++) {
		target = &targets->target[below(random, targets->num)];
		switch (below(random, 8)) {
		case 0:
			/* What one of them writes to a device must not reach another one. */
			targets_config_step(targets, random, false);
			break;
		case 1:
			targets_port_step(targets, random);
			break;
		case 2:
		case 3:
			if (target->kind) {
				target_start(target, U64_MAX);
				target_queue_step(target, random);
			}
			break;
		case 4:
			if (target->kind)
				target_queue_step(target, random);
			break;
		case 5:
			/* BARs are where they belong for a while. */
			targets_restore(targets);
			break;
		default:
			target_register_step(target, random);
			break;
		}
		targets_rest(targets, i);
	}
	/* The module may be gone before this returned. */
	kthread_complete_and_exit(&attacker->done, 0);
}

static struct task_struct *start(struct attacker *attacker, struct targets *targets, u32 cpu)
{
	struct task_struct *task;

	attacker->targets = targets;
	prandom_seed_state(&attacker->random, prandom_u32_state(&targets->hostile->random));
	init_completion(&attacker->done);
	task = kthread_create(attack, attacker, "hostile/%u", cpu);
	if (!IS_ERR(task)) {
		kthread_bind(task, cpu);
		wake_up_process(task);
	}
	return task;
}

static int attack_from_all(struct targets *targets)
{
	struct attacker *attackers = kcalloc(nr_cpu_ids, sizeof(*attackers), GFP_KERNEL);
	int status = 0;
	u32 cpu;

	if (!attackers)
		return -ENOMEM;
	cpus_read_lock();
	for_each_online_cpu(cpu)
		if (IS_ERR(start(&attackers[cpu], targets, cpu))) {
			complete(&attackers[cpu].done);
			status = -EAGAIN;
		}
	for_each_online_cpu(cpu)
		wait_for_completion(&attackers[cpu].done);
	cpus_read_unlock();
	kfree(attackers);
	return status;
}

void hostile_attack_crowd(struct hostile *hostile)
{
	struct serial_state serial[TARGETS_NUM_SERIAL];
	struct targets *targets = targets_find(hostile);
	int round, status;

	if (!targets)
		return;
	hostile_reset(hostile);
	for (round = 0; round < NUM_ROUNDS && !targets_are_lost(targets); round++) {
		targets_save_serial(serial);
		status = attack_from_all(targets);
		targets_restore_serial(serial);
		if (status)
			hostile_fail(hostile, "processors, round", round, status);
		targets_check(targets, "all processors, round", round);
	}
	targets_release(targets);
}
