// SPDX-License-Identifier: GPL-2.0
/* Brings the connector and one interface up, by the rules of docs/abi.md. */
#include <linux/delay.h>
#include <linux/io.h>

#include "hostile.h"

int hostile_call(struct hostile *hostile, struct vbus_pci_call *call, u32 func, void *args,
		 size_t len)
{
	memset(call, 0, sizeof(*call));
	call->func = cpu_to_le32(func);
	call->status = cpu_to_le32(VBUS_PCI_STATUS_PENDING);
	memcpy(call->args, args, len);
	writeq(virt_to_phys(call), hostile->registers + offsetof(struct vbus_pci_registers, call));
	memcpy(args, call->args, len);
	return (s32)le32_to_cpu(READ_ONCE(call->status));
}

void hostile_reset(struct hostile *hostile)
{
	writel(1, hostile->registers + offsetof(struct vbus_pci_registers, reset));
	hostile->handle = 0;
}

static void make_ring(struct vbus_ring_header *ring, u32 num_slots)
{
	memset(ring, 0, HOSTILE_RING_BYTES(num_slots));
	ring->magic = cpu_to_le32(VBUS_RING_MAGIC);
	ring->version = cpu_to_le32(VBUS_RING_VERSION);
	ring->num_slots = cpu_to_le32(num_slots);
	ring->slot_bytes = cpu_to_le32(sizeof(struct vbus_ring_slot));
}

int hostile_start(struct hostile *hostile, struct vbus_pci_call *call, bool publishes)
{
	struct vbus_pci_negotiate negotiate = { .version = cpu_to_le32(VBUS_PCI_VERSION) };
	u64 nothing = 0;
	int status, i, slot;

	hostile_reset(hostile);
	hostile->events_seen = 0;
	status = hostile_call(hostile, call, VBUS_PCI_FUNC_NEGOTIATE, &negotiate,
			      sizeof(negotiate));
	for (i = 0; i < VBUS_PCI_NUM_EVENT_QUEUES && status >= 0; i++) {
		struct vbus_pci_event_queue queue = {
			.queue = cpu_to_le32(i),
			.addr = cpu_to_le64(virt_to_phys(hostile->event_rings[i])),
			.len = cpu_to_le32(HOSTILE_RING_BYTES(HOSTILE_EVENT_SLOTS)),
		};

		make_ring(hostile->event_rings[i], HOSTILE_EVENT_SLOTS);
		for (slot = 0; publishes && slot < HOSTILE_EVENT_SLOTS; slot++)
			hostile_slots(hostile->event_rings[i])[slot].turn = cpu_to_le16(1);
		status = hostile_call(hostile, call, VBUS_PCI_FUNC_EVENT_QUEUE, &queue,
				      sizeof(queue));
	}
	if (status >= 0)
		status = hostile_call(hostile, call, VBUS_PCI_FUNC_START, &nothing,
				      sizeof(nothing));
	return status;
}

/* The next event of interfaces, if one has come; the queue is good for one lap only. */
static bool next_event(struct hostile *hostile, u64 *event, u64 *addr)
{
	struct vbus_ring_header *ring = hostile->event_rings[VBUS_PCI_NUM_EVENT_QUEUES - 1];
	struct vbus_ring_slot *slot = &hostile_slots(ring)[hostile->events_seen];

	if (hostile->events_seen == HOSTILE_EVENT_SLOTS)
		return false;
	if (smp_load_acquire(&slot->turn) != cpu_to_le16(2))
		return false;
	hostile->events_seen++;
	*event = le64_to_cpu(slot->meta[0]);
	*addr = le64_to_cpu(slot->addr);
	return true;
}

int hostile_open(struct hostile *hostile, struct vbus_pci_call *call)
{
	struct vbus_pci_open open = { .version = cpu_to_le32(VENET_VERSION) };
	int status, tries;
	u64 event, addr;

	for (tries = 0; tries < 1000; tries++) {
		while (next_event(hostile, &event, &addr)) {
			if (event != VBUS_PCI_EVENT_DEVICE_ADDED)
				continue;
			hostile->id = addr;
			open.id = cpu_to_le32(hostile->id);
			status = hostile_call(hostile, call, VBUS_PCI_FUNC_OPEN, &open,
					      sizeof(open));
			hostile->handle = status < 0 ? 0 : le64_to_cpu(open.handle);
			return status;
		}
		usleep_range(500, 1000);
	}
	return -ENODEV;
}

static int device_call(struct hostile *hostile, struct vbus_pci_call *call, u32 func, u32 len)
{
	struct vbus_pci_device_call args = {
		.handle = cpu_to_le64(hostile->handle),
		.func = cpu_to_le32(func),
		.len = cpu_to_le32(len),
		.addr = cpu_to_le64(virt_to_phys(hostile->buffer)),
	};

	return hostile_call(hostile, call, VBUS_PCI_FUNC_DEVICE_CALL, &args, sizeof(args));
}

static int share(struct hostile *hostile, struct vbus_pci_call *call, u32 id, void *memory,
		 u32 len, u32 signal_offset, u32 *signal)
{
	struct vbus_pci_shm shm = {
		.handle = cpu_to_le64(hostile->handle),
		.cookie = cpu_to_le64(id),
		.addr = cpu_to_le64(virt_to_phys(memory)),
		.len = cpu_to_le32(len),
		.id = cpu_to_le32(id),
		.signal_offset = cpu_to_le32(signal_offset),
		.vector = cpu_to_le32(VBUS_PCI_NO_VECTOR),
	};
	int status = hostile_call(hostile, call, VBUS_PCI_FUNC_SHM, &shm, sizeof(shm));

	*signal = le32_to_cpu(shm.signal);
	return status;
}

int hostile_link_up(struct hostile *hostile, struct vbus_pci_call *call)
{
	const u32 ring_bytes = HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS);
	struct venet_capabilities *caps = hostile->buffer;
	struct vbus_ring_slot *slots = hostile_slots(hostile->rx);
	u32 signal;
	int status, i;

	caps->group = cpu_to_le32(VENET_CAP_GROUP_TX);
	caps->bits = cpu_to_le32(VENET_TX_CAP_SG | VENET_TX_CAP_CSUM | VENET_TX_CAP_TSO4 |
				 VENET_TX_CAP_TSO6 | VENET_TX_CAP_USO);
	status = device_call(hostile, call, VENET_FUNC_NEGOTIATE, sizeof(*caps));
	if (status < 0)
		return status;
	caps->group = cpu_to_le32(VENET_CAP_GROUP_RX);
	caps->bits = cpu_to_le32(VENET_RX_CAP_MERGED | VENET_RX_CAP_CSUM);
	status = device_call(hostile, call, VENET_FUNC_NEGOTIATE, sizeof(*caps));
	if (status < 0)
		return status;

	make_ring(hostile->tx, HOSTILE_RING_SLOTS);
	make_ring(hostile->rx, HOSTILE_RING_SLOTS);
	for (i = 0; i < HOSTILE_RING_SLOTS; i++) {
		slots[i].addr = cpu_to_le64(virt_to_phys(hostile->buffer));
		slots[i].len = cpu_to_le32(PAGE_SIZE);
		slots[i].turn = cpu_to_le16(1);
	}
	status = share(hostile, call, VENET_SHM_ID_RX_RING, hostile->rx, ring_bytes,
		       VBUS_RING_SIGNAL_OFFSET, &signal);
	if (status >= 0)
		status = share(hostile, call, VENET_SHM_ID_TX_SEGMENTS, hostile->pool,
			       HOSTILE_POOL_BYTES, VBUS_PCI_NO_SIGNAL, &signal);
	if (status >= 0)
		status = share(hostile, call, VENET_SHM_ID_TX_RING, hostile->tx, ring_bytes,
			       VBUS_RING_SIGNAL_OFFSET, &hostile->tx_signal);
	if (status >= 0)
		status = device_call(hostile, call, VENET_FUNC_LINK_UP, 0);
	return status;
}

bool hostile_was_dropped(struct hostile *hostile)
{
	u64 event, addr;
	int tries;

	for (tries = 0; tries < 50; tries++) {
		while (next_event(hostile, &event, &addr))
			if (event == VBUS_PCI_EVENT_DEVICE_DROPPED && addr == hostile->id)
				return true;
		usleep_range(500, 1000);
	}
	return false;
}
