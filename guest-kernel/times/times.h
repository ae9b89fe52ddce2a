/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the verbs of the bus cost, beside what they are made of and what others do instead.
 *
 * Each subject is a loop over one operation, as drivers use it. No host looks at what is rung: that
 * costs whoever wakes up, not the operation.
 */
#ifndef VBUS_TIMES_H
#define VBUS_TIMES_H

#include <linux/types.h>

/**
 * struct times_subject - something that takes time
 * @name: what it is called outside
 * @run: does it so many times; 0, or a negated errno: it cannot be done here
 */
struct times_subject {
	const char *name;
	int (*run)(u32 num);
};

/* vbus.c: of an interface of the bus, which has to be there when this driver is loaded. */
int times_vbus_call(u32 num);
int times_doorbell(u32 num);
int times_suppressed(u32 num);
int times_register_driver(void);
void times_unregister_driver(void);

/* others.c */
int times_nothing(u32 num);
int times_pio_exit(u32 num);
int times_pio_eventfd(u32 num);
int times_mmio_eventfd(u32 num);
int times_control_queue(u32 num);
int times_order_doorbells(void);
void times_unmap(void);

#endif /* VBUS_TIMES_H */
