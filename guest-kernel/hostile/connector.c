// SPDX-License-Identifier: GPL-2.0
/* Brings the connector and one interface up, by the rules of docs/abi.md. */
#include <linux/delay.h>
#include <linux/etherdevice.h>
#include <linux/io.h>

#include "hostile.h"

int hostile_call(struct hostile *hostile, u32 func, void *args, size_t len)
{
	struct vbus_pci_call *call = hostile->call;

	memset(call, 0, sizeof(*call));
	call->func = cpu_to_le32(func);
	call->status = cpu_to_le32(VBUS_PCI_STATUS_PENDING);
	memcpy(call->args, args, len);
	writeq(virt_to_phys(call), hostile->registers + offsetof(struct vbus_pci_registers, call));
	memcpy(args, call->args, len);
	return (s32)le32_to_cpu(READ_ONCE(call->status));
}

int hostile_device_call(struct hostile *hostile, u32 func, u32 len)
{
	struct vbus_pci_device_call args = {
		.handle = cpu_to_le64(hostile->handle),
		.func = cpu_to_le32(func),
		.len = cpu_to_le32(len),
		.addr = cpu_to_le64(virt_to_phys(hostile->buffer)),
	};

	return hostile_call(hostile, VBUS_PCI_FUNC_DEVICE_CALL, &args, sizeof(args));
}

void hostile_reset(struct hostile *hostile)
{
	writel(1, hostile->registers + offsetof(struct vbus_pci_registers, reset));
	memset(hostile->events_seen, 0, sizeof(hostile->events_seen));
	hostile->handle = 0;
	hostile->id = U32_MAX;
	hostile->num_sent = 0;
	hostile->num_dropped = 0;
	hostile->num_closed = 0;
}

void hostile_ring(struct hostile *hostile, u32 signal)
{
	outl(signal, hostile->ports + VBUS_PCI_PORT_DOORBELL);
}

static void make_ring(struct vbus_ring_header *ring, u32 num_slots)
{
	memset(ring, 0, HOSTILE_RING_BYTES(num_slots));
	ring->magic = cpu_to_le32(VBUS_RING_MAGIC);
	ring->version = cpu_to_le32(VBUS_RING_VERSION);
	ring->num_slots = cpu_to_le32(num_slots);
	ring->slot_bytes = cpu_to_le32(sizeof(struct vbus_ring_slot));
}

int hostile_negotiate(struct hostile *hostile)
{
	struct vbus_pci_negotiate args = { .version = cpu_to_le32(VBUS_PCI_VERSION) };

	return hostile_call(hostile, VBUS_PCI_FUNC_NEGOTIATE, &args, sizeof(args));
}

int hostile_add_queue(struct hostile *hostile, u32 idx, u32 num_published)
{
	struct vbus_ring_header *ring = hostile->event_rings[idx];
	struct vbus_pci_event_queue args = {
		.queue = cpu_to_le32(idx),
		.addr = cpu_to_le64(virt_to_phys(ring)),
		.len = cpu_to_le32(HOSTILE_RING_BYTES(HOSTILE_EVENT_SLOTS)),
	};
	u32 slot;

	make_ring(ring, HOSTILE_EVENT_SLOTS);
	for (slot = 0; slot < num_published; slot++)
		hostile_slots(ring)[slot].turn = cpu_to_le16(1);
	return hostile_call(hostile, VBUS_PCI_FUNC_EVENT_QUEUE, &args, sizeof(args));
}

int hostile_start(struct hostile *hostile, u32 num_published)
{
	unsigned long end = jiffies + HOSTILE_PATIENCE;
	u64 nothing = 0;
	int status, i;

	hostile_reset(hostile);
	status = hostile_negotiate(hostile);
	for (i = 0; i < VBUS_PCI_NUM_EVENT_QUEUES && status >= 0; i++)
		status = hostile_add_queue(hostile, i, num_published);
	if (status >= 0)
		status = hostile_call(hostile, VBUS_PCI_FUNC_START, &nothing, sizeof(nothing));
	if (status < 0)
		return status;
	/* A daemon that cut us off has to be joined again. */
	hostile_look_at_events(hostile);
	while (hostile->id == U32_MAX && time_before(jiffies, end)) {
		usleep_range(500, 1000);
		hostile_look_at_events(hostile);
	}
	return hostile->id == U32_MAX ? -ENODEV : 0;
}

void hostile_look_at_events(struct hostile *hostile)
{
	struct vbus_ring_slot *slot;
	u32 *seen;
	int i;

	for (i = 0; i < VBUS_PCI_NUM_EVENT_QUEUES; i++) {
		for (seen = &hostile->events_seen[i]; *seen < HOSTILE_EVENT_SLOTS; ++*seen) {
			slot = &hostile_slots(hostile->event_rings[i])[*seen];
			if (smp_load_acquire(&slot->turn) != cpu_to_le16(2))
				break;
			switch (le64_to_cpu(slot->meta[0])) {
			case VBUS_PCI_EVENT_DEVICE_ADDED:
				hostile->id = le64_to_cpu(slot->addr);
				break;
			case VBUS_PCI_EVENT_DEVICE_DROPPED:
				hostile->num_dropped += le64_to_cpu(slot->addr) == hostile->id;
				break;
			case VBUS_PCI_EVENT_SHM_CLOSED:
				hostile->num_closed++;
				break;
			}
		}
	}
}

static int negotiate_group(struct hostile *hostile, u32 group, u32 bits)
{
	struct venet_capabilities *caps = hostile->buffer;

	caps->group = cpu_to_le32(group);
	caps->bits = cpu_to_le32(bits);
	return hostile_device_call(hostile, VENET_FUNC_NEGOTIATE, sizeof(*caps));
}

int hostile_open(struct hostile *hostile)
{
	struct vbus_pci_open args = {
		.id = cpu_to_le32(hostile->id),
		.version = cpu_to_le32(VENET_VERSION),
	};
	int status = hostile_call(hostile, VBUS_PCI_FUNC_OPEN, &args, sizeof(args));

	if (status < 0)
		return status;
	hostile->handle = le64_to_cpu(args.handle);
	status = negotiate_group(hostile, VENET_CAP_GROUP_TX,
				 VENET_TX_CAP_SG | VENET_TX_CAP_CSUM | VENET_TX_CAP_TSO4 |
				 VENET_TX_CAP_TSO6 | VENET_TX_CAP_USO);
	if (status >= 0)
		status = negotiate_group(hostile, VENET_CAP_GROUP_RX,
					 VENET_RX_CAP_MERGED | VENET_RX_CAP_CSUM);
	return status;
}

int hostile_share(struct hostile *hostile, u32 id, void *memory, u32 len, u32 signal_offset,
		  u32 *signal)
{
	struct vbus_pci_shm args = {
		.handle = cpu_to_le64(hostile->handle),
		.cookie = cpu_to_le64(id),
		.addr = cpu_to_le64(virt_to_phys(memory)),
		.len = cpu_to_le32(len),
		.id = cpu_to_le32(id),
		.signal_offset = cpu_to_le32(signal_offset),
		.vector = cpu_to_le32(VBUS_PCI_NO_VECTOR),
	};
	int status = hostile_call(hostile, VBUS_PCI_FUNC_SHM, &args, sizeof(args));

	if (status >= 0 && signal)
		*signal = le32_to_cpu(args.signal);
	return status;
}

int hostile_share_all(struct hostile *hostile)
{
	const u32 ring_bytes = HOSTILE_RING_BYTES(HOSTILE_RING_SLOTS);
	int status;

	status = hostile_share(hostile, VENET_SHM_ID_RX_RING, hostile->rx, ring_bytes,
			       VBUS_RING_SIGNAL_OFFSET, NULL);
	if (status >= 0)
		status = hostile_share(hostile, VENET_SHM_ID_TX_SEGMENTS, hostile->pool,
				       HOSTILE_POOL_BYTES, VBUS_PCI_NO_SIGNAL, NULL);
	if (status >= 0)
		status = hostile_share(hostile, VENET_SHM_ID_TX_RING, hostile->tx, ring_bytes,
				       VBUS_RING_SIGNAL_OFFSET, &hostile->tx_signal);
	return status;
}

int hostile_link_up(struct hostile *hostile)
{
	struct vbus_ring_slot *slots = hostile_slots(hostile->rx);
	int status = hostile_start(hostile, HOSTILE_EVENT_SLOTS), i;

	/* Only now: until the reset the host may write to them. */
	make_ring(hostile->tx, HOSTILE_RING_SLOTS);
	make_ring(hostile->rx, HOSTILE_RING_SLOTS);
	for (i = 0; i < HOSTILE_NUM_BUFFERS; i++) {
		slots[i].addr = cpu_to_le64(virt_to_phys(hostile->buffer));
		slots[i].len = cpu_to_le32(PAGE_SIZE);
		slots[i].turn = cpu_to_le16(1);
	}
	memset(hostile->pool, 0, HOSTILE_POOL_BYTES);
	if (status >= 0)
		status = hostile_open(hostile);
	if (status >= 0)
		status = hostile_share_all(hostile);
	if (status >= 0)
		status = hostile_device_call(hostile, VENET_FUNC_LINK_UP, 0);
	return status;
}

u16 hostile_turn(const struct hostile *hostile)
{
	return 2 * (hostile->num_sent / HOSTILE_RING_SLOTS) + 1;
}

void hostile_send(struct hostile *hostile, const struct vbus_ring_slot *slot, u16 turn)
{
	struct vbus_ring_slot *place =
		&hostile_slots(hostile->tx)[hostile->num_sent % HOSTILE_RING_SLOTS];

	place->addr = slot->addr;
	place->meta[0] = slot->meta[0];
	place->meta[1] = slot->meta[1];
	place->len = slot->len;
	place->batch = 0;
	smp_store_release(&place->turn, cpu_to_le16(turn));
	hostile->num_sent++;
	hostile_ring(hostile, hostile->tx_signal);
}

bool hostile_was_taken(struct hostile *hostile)
{
	u32 last = hostile->num_sent - 1;
	struct vbus_ring_slot *slot = &hostile_slots(hostile->tx)[last % HOSTILE_RING_SLOTS];
	__le16 turn = cpu_to_le16(2 * (last / HOSTILE_RING_SLOTS) + 2);
	unsigned long end = jiffies + HOSTILE_PATIENCE;

	if (!hostile->num_sent)
		return true;
	while (smp_load_acquire(&slot->turn) != turn) {
		if (time_after(jiffies, end))
			return false;
		usleep_range(500, 1000);
	}
	return true;
}

void hostile_say_hello(struct hostile *hostile)
{
	/* Who has 10.214.0.1? Tell 10.214.0.3. */
	static const u8 request[] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0xa7, 0xac, 3, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0xa7, 0xac, 3, 10, 214, 0, 3,
		0, 0, 0, 0, 0, 0, 10, 214, 0, 1,
	};
	void *frame = hostile->buffer + HOSTILE_BUFFER_BYTES / 2;
	struct vbus_ring_slot slot = {
		.addr = cpu_to_le64(virt_to_phys(frame)),
		.len = cpu_to_le32(ETH_ZLEN),
	};

	memset(frame, 0, ETH_ZLEN);
	memcpy(frame, request, sizeof(request));
	hostile_send(hostile, &slot, hostile_turn(hostile));
}
