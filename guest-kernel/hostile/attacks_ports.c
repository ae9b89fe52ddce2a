// SPDX-License-Identifier: GPL-2.0
/* Attacks by ports of the machine itself. What really ends it is left out. */
#include <linux/io.h>
#include <linux/serial_reg.h>

#include "targets.h"

#define NUM_ROUNDS	5
#define STEPS_PER_ROUND	400

#define COM1		0x3f8
#define COM2		0x2f8
#define I8042_COMMAND	0x64
#define PANIC		0x505
#define SLEEP_CONTROL	0x600
#define RESET		0x602
#define REPORT_STATUS	0xa01
#define STRING_BYTES	64

static const struct {
	u16 start;
	u16 num;
} places[] = {
	{ COM1, 8 }, { COM2, 8 }, { 0x60, 5 }, { PANIC - 1, 3 }, { SLEEP_CONTROL, 4 }, { 0xa00, 4 },
	{ 0xcf8, 8 },
};

/* Whether this ends the VM, or the command as the host sees it. */
static bool is_deadly(u16 port, u8 value)
{
	switch (port) {
	case I8042_COMMAND:
		return value == 0xfe;
	case PANIC:
		return value & 1;
	case SLEEP_CONTROL:
		return value == 0x34;
	case RESET:
		return value == 1;
	case REPORT_STATUS:
		return true;
	}
	return false;
}

static void any_read(u16 port, struct rnd_state *random)
{
	u8 bytes[STRING_BYTES];

	switch (below(random, 5)) {
	case 0:
		inb(port);
		break;
	case 1:
		inw(port);
		break;
	case 2:
		inl(port);
		break;
	case 3:
		insb(port, bytes, 1 + below(random, sizeof(bytes)));
		break;
	case 4:
		insl(port, bytes, 1 + below(random, sizeof(bytes) / sizeof(u32)));
		break;
	}
}

static void any_write(u16 port, struct rnd_state *random)
{
	u32 value = prandom_u32_state(random);
	u8 bytes[STRING_BYTES];

	/* What a serial port may give back to its driver is no text, such as Ctrl-C. */
	if (port == COM1 || port == COM2)
		value |= 0x80808080;
	memset(bytes, 0x80, sizeof(bytes));
	switch (below(random, 5)) {
	case 0:
	case 1:
		if (!is_deadly(port, value))
			outb(value, port);
		break;
	case 2:
		outw(value, port);
		break;
	case 3:
		outl(value, port);
		break;
	case 4:
		if (!is_deadly(port, bytes[0]))
			outsb(port, bytes, 1 + below(random, sizeof(bytes)));
		break;
	}
}

void targets_port_step(struct targets *targets, struct rnd_state *random)
{
	u32 idx = below(random, ARRAY_SIZE(places) + 1);
	u16 port;

	if (idx < ARRAY_SIZE(places))
		port = places[idx].start + below(random, places[idx].num);
	else
		port = targets->hostile->ports +
		       below(random, below(random, 2) ? 8 : VBUS_PCI_PORTS_BAR_BYTES);
	if (below(random, 3))
		any_write(port, random);
	else
		any_read(port, random);
}

static const u16 serial_ports[TARGETS_NUM_SERIAL] = { COM1, COM2 };

void targets_save_serial(struct serial_state *serial)
{
	int i;

	for (i = 0; i < TARGETS_NUM_SERIAL; i++) {
		serial[i].ier = inb(serial_ports[i] + UART_IER);
		serial[i].lcr = inb(serial_ports[i] + UART_LCR);
		serial[i].mcr = inb(serial_ports[i] + UART_MCR);
	}
}

void targets_restore_serial(const struct serial_state *serial)
{
	int i, num_left;

	for (i = 0; i < TARGETS_NUM_SERIAL; i++) {
		outb(serial[i].mcr, serial_ports[i] + UART_MCR);
		outb(serial[i].lcr, serial_ports[i] + UART_LCR);
		for (num_left = STEPS_PER_ROUND;
		     num_left && inb(serial_ports[i] + UART_LSR) & UART_LSR_DR; num_left--)
			inb(serial_ports[i] + UART_RX);
		outb(serial[i].ier, serial_ports[i] + UART_IER);
	}
}

void hostile_attack_ports(struct hostile *hostile)
{
	struct targets *targets = targets_find(hostile);
	struct serial_state serial[TARGETS_NUM_SERIAL];
	int round, i;

	if (!targets)
		return;
	hostile_reset(hostile);
	for (round = 0; round < NUM_ROUNDS && !targets_are_lost(targets); round++) {
		targets_save_serial(serial);
		for (i = 0; i < STEPS_PER_ROUND; i++) {
			targets_port_step(targets, &hostile->random);
			targets_rest(targets, i);
		}
		/* First, so that what goes wrong can be told. */
		targets_restore_serial(serial);
		targets_check(targets, "ports, round", round);
	}
	targets_release(targets);
}
