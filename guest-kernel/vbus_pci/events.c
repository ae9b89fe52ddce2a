// SPDX-License-Identifier: GPL-2.0
/*
 * Events: rings that come back with what happened, each with an interrupt.
 *
 * Signals and the end of shared memory are handled in the interrupt. Devices that come and go are
 * handed to a worker, in order, because drivers sleep in probe and remove.
 */
#include <linux/interrupt.h>

#include "vbus_pci.h"

static void vbus_pci_doorbell(void *context)
{
	struct vbus_pci_queue *queue = context;

	vbus_pci_ring(queue->vp, queue->index);
}

/* Leaves it to the worker; false if there are too many. */
static bool vbus_pci_defer(struct vbus_pci *vp, u32 event, u64 id)
{
	struct vbus_pci_pending pending = { .event = event, .id = id };
	bool is_taken;

	if (READ_ONCE(vp->is_ending))
		return true;
	spin_lock(&vp->pending_lock);
	is_taken = kfifo_put(&vp->pending, pending);
	if (!is_taken)
		vp->is_stalled = true;
	spin_unlock(&vp->pending_lock);
	queue_work(vp->workqueue, &vp->work);
	return is_taken;
}

/* False: not now. */
static bool vbus_pci_event(struct vbus_pci *vp, const struct vbus_ring_slot *slot)
{
	u64 event = le64_to_cpu(READ_ONCE(slot->meta[0]));
	u64 addr = le64_to_cpu(READ_ONCE(slot->addr));

	switch (event) {
	case VBUS_PCI_EVENT_SIGNAL:
		vbus_connector_signal(&vp->connector, addr);
		return true;
	case VBUS_PCI_EVENT_SHM_CLOSED:
		vbus_connector_shm_closed(&vp->connector, addr);
		return true;
	case VBUS_PCI_EVENT_DEVICE_ADDED:
	case VBUS_PCI_EVENT_DEVICE_DROPPED:
	case VBUS_PCI_EVENT_DEVICE_LOST:
		return vbus_pci_defer(vp, event, addr);
	default:
		dev_warn_ratelimited(&vp->pdev->dev, "unknown event %llu\n", event);
		return true;
	}
}

/* Handles all that is there, and asks to be told about more. */
static void vbus_pci_drain(struct vbus_pci_queue *queue)
{
	struct vbus_pci *vp = queue->vp;
	struct vbus_ring *ring = queue->ring;
	int num_events, i;

	lockdep_assert_held(&queue->lock);
	if (queue->is_broken)
		return;
	do {
		vbus_ring_disable_notify(ring);
		while ((num_events = vbus_ring_returned(ring)) > 0) {
			for (i = 0; i < num_events; i++)
				if (!vbus_pci_event(vp, vbus_ring_returned_slot(ring, i)))
					break;
			vbus_ring_release(ring, i);
			vbus_ring_publish_empty(ring, i);
			vbus_ring_signal(ring);
			if (i < num_events)
				return; /* the worker goes on here */
		}
		if (num_events < 0) {
			queue->is_broken = true;
			queue_work(vp->workqueue, &vp->work);
			return;
		}
	} while (!vbus_ring_enable_notify(ring));
}

static irqreturn_t vbus_pci_queue_irq(int irq, void *data)
{
	struct vbus_pci_queue *queue = data;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	vbus_pci_drain(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	return IRQ_HANDLED;
}

void vbus_pci_drain_queues(struct vbus_pci *vp)
{
	struct vbus_pci_queue *queue;

	for (queue = vp->queues; queue < vp->queues + ARRAY_SIZE(vp->queues); queue++) {
		spin_lock_irq(&queue->lock);
		vbus_pci_drain(queue);
		spin_unlock_irq(&queue->lock);
	}
}

/* When it returns, no event is in work that came before. */
void vbus_pci_await_drains(struct vbus_pci *vp)
{
	struct vbus_pci_queue *queue;

	for (queue = vp->queues; queue < vp->queues + ARRAY_SIZE(vp->queues); queue++) {
		spin_lock_irq(&queue->lock);
		spin_unlock_irq(&queue->lock);
	}
}

static void vbus_pci_add_device(struct vbus_pci *vp, u32 id)
{
	struct vbus_pci_device_info info = { .id = cpu_to_le32(id) };
	int ret;

	ret = vbus_pci_call(vp, VBUS_PCI_FUNC_DEVICE_INFO, &info, sizeof(info));
	if (ret == -ENOENT)
		return; /* gone already, which is another event */
	if (ret >= 0 && strnlen(info.kind, sizeof(info.kind)) == sizeof(info.kind))
		ret = -EPROTO;
	if (ret >= 0)
		ret = vbus_connector_add(&vp->connector, id, info.kind);
	if (ret < 0)
		dev_err(&vp->pdev->dev, "cannot add device %u: %d\n", id, ret);
}

static bool vbus_pci_is_broken(struct vbus_pci *vp)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(vp->queues); i++)
		if (READ_ONCE(vp->queues[i].is_broken))
			return true;
	return false;
}

/* The host does not keep to the rules, so nothing that it says counts any more. */
static void vbus_pci_give_up(struct vbus_pci *vp)
{
	dev_err(&vp->pdev->dev, "the host broke the rules of event queues, leaving the bus\n");
	WRITE_ONCE(vp->is_ending, true);
	vbus_pci_reset(vp);
	vbus_connector_unregister(&vp->connector);
}

void vbus_pci_work(struct work_struct *work)
{
	struct vbus_pci *vp = container_of(work, struct vbus_pci, work);
	struct vbus_pci_pending pending;
	bool was_stalled;
	int is_pending;

	while (!READ_ONCE(vp->is_ending)) {
		if (vbus_pci_is_broken(vp)) {
			vbus_pci_give_up(vp);
			return;
		}
		spin_lock_irq(&vp->pending_lock);
		is_pending = kfifo_get(&vp->pending, &pending);
		was_stalled = !is_pending && vp->is_stalled;
		if (was_stalled)
			vp->is_stalled = false;
		spin_unlock_irq(&vp->pending_lock);
		if (was_stalled)
			vbus_pci_drain_queues(vp);
		else if (!is_pending)
			return;
		else if (pending.event == VBUS_PCI_EVENT_DEVICE_ADDED)
			vbus_pci_add_device(vp, pending.id);
		else if (pending.event == VBUS_PCI_EVENT_DEVICE_LOST)
			vbus_connector_lose(&vp->connector, pending.id);
		else
			vbus_connector_drop(&vp->connector, pending.id);
	}
}

static int vbus_pci_add_queue(struct vbus_pci *vp, u32 index)
{
	struct vbus_pci_queue *queue = &vp->queues[index];
	u32 vector = index % vp->num_vectors;
	struct vbus_pci_event_queue args = {
		.queue = cpu_to_le32(index),
		.vector = cpu_to_le32(vector),
	};
	bool is_shared = vp->num_vectors < ARRAY_SIZE(vp->queues);
	struct vbus_ring *ring;
	int irq, ret;

	ring = vbus_ring_alloc(VBUS_PCI_QUEUE_SLOTS, queue->name, NULL, NULL);
	if (IS_ERR(ring))
		return PTR_ERR(ring);
	ring->doorbell = vbus_pci_doorbell;
	ring->doorbell_context = queue;
	queue->ring = ring;
	vbus_ring_publish_empty(ring, VBUS_PCI_QUEUE_SLOTS);

	irq = pci_irq_vector(vp->pdev, vector);
	ret = request_irq(irq, vbus_pci_queue_irq, is_shared ? IRQF_SHARED : 0, queue->name,
			  queue);
	if (ret)
		return ret;
	queue->irq = irq;
	mutex_lock(&vp->vectors_lock);
	__set_bit(vector, vp->vectors);
	mutex_unlock(&vp->vectors_lock);

	args.addr = cpu_to_le64(vbus_ring_addr(ring));
	args.len = cpu_to_le32(vbus_ring_bytes(ring));
	ret = vbus_pci_call(vp, VBUS_PCI_FUNC_EVENT_QUEUE, &args, sizeof(args));
	if (ret < 0)
		return ret;
	spin_lock_irq(&queue->lock);
	vbus_pci_drain(queue);
	spin_unlock_irq(&queue->lock);
	return 0;
}

int vbus_pci_add_queues(struct vbus_pci *vp)
{
	struct vbus_pci_queue *queue;
	u32 i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(vp->queues); i++) {
		queue = &vp->queues[i];
		queue->vp = vp;
		queue->index = i;
		spin_lock_init(&queue->lock);
		snprintf(queue->name, sizeof(queue->name), "vbus-events%u", i);
	}
	for (i = 0; i < ARRAY_SIZE(vp->queues); i++) {
		ret = vbus_pci_add_queue(vp, i);
		if (ret)
			return ret;
	}
	return 0;
}

/* After a reset: the host knows of none any more. */
void vbus_pci_free_queues(struct vbus_pci *vp)
{
	struct vbus_pci_queue *queue;

	for (queue = vp->queues; queue < vp->queues + ARRAY_SIZE(vp->queues); queue++) {
		if (queue->irq)
			free_irq(queue->irq, queue);
		queue->irq = 0;
	}
	for (queue = vp->queues; queue < vp->queues + ARRAY_SIZE(vp->queues); queue++) {
		vbus_ring_free(queue->ring);
		queue->ring = NULL;
	}
}
