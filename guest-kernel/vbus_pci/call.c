// SPDX-License-Identifier: GPL-2.0
/*
 * Calls of the host. Each is done when the write that starts it returns: whoever makes it stands
 * still meanwhile, so there is nothing to wait for.
 */
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "vbus_pci.h"

static void vbus_pci_fill(struct vbus_pci_call *call, u32 func, const void *args, size_t len)
{
	call->func = cpu_to_le32(func);
	call->status = cpu_to_le32(VBUS_PCI_STATUS_PENDING);
	memcpy(call->args, args, len);
	memset(call->args + len, 0, sizeof(call->args) - len);
}

/* What became of it. */
static int vbus_pci_status(struct vbus_pci_call *call)
{
	u32 status = le32_to_cpu(virt_load_acquire(&call->status));

	if (status == VBUS_PCI_STATUS_PENDING)
		return -EIO; /* nobody was there */
	if ((s32)status < -MAX_ERRNO)
		return -EPROTO;
	return status;
}

/* Through the register: from any processor. May sleep. */
int vbus_pci_call(struct vbus_pci *vp, u32 func, void *args, size_t len)
{
	struct vbus_pci_call *call;
	int ret;

	/* Memory of a power of two is aligned to its size, so it is inside one page, too. */
	BUILD_BUG_ON(sizeof(*call) != 128);
	call = kmalloc(sizeof(*call), GFP_KERNEL);
	if (!call)
		return -ENOMEM;
	vbus_pci_fill(call, func, args, len);
	writeq(virt_to_phys(call), &vp->registers->call);
	ret = vbus_pci_status(call);
	if (ret >= 0)
		memcpy(args, call->args, len); /* to what the host answered */
	kfree(call);
	return ret;
}

/*
 * A call of a device through channel number @channel, of the processor that we stay on meanwhile.
 * @copy: where the data is already, or NULL: it fits into the channel.
 */
static int vbus_pci_channel_call(struct vbus_pci *vp, u32 channel,
				 const struct vbus_pci_device_call *args, void *data,
				 size_t len, void *copy)
{
	struct vbus_pci_box *box = &vp->channels[channel];
	int ret;

	/* Nothing else is ever called here, so the rest of the arguments is zero for ever. */
	box->args = *args;
	if (!copy) {
		box->args.addr = cpu_to_le64(virt_to_phys(box->data));
		memcpy(box->data, data, len);
	}
	box->call.func = cpu_to_le32(VBUS_PCI_FUNC_DEVICE_CALL);
	box->call.status = cpu_to_le32(VBUS_PCI_STATUS_PENDING);
	barrier(); /* to the compiler outl() touches no memory */
	outl(channel, vp->ports + VBUS_PCI_PORT_FAST_CALL);
	ret = vbus_pci_status(&box->call);
	if (ret >= 0 && !copy)
		memcpy(data, box->data, len);
	return ret;
}

/* A call of a device, through the channel of this processor, if it has one. May sleep. */
int vbus_pci_fast_call(struct vbus_pci *vp, struct vbus_pci_device_call *args, void *data,
		       size_t len)
{
	void *copy = NULL;
	u32 channel;
	int ret;

	/*
	 * Data is copied: what the caller has may be on its stack, whose pages do not lie side by
	 * side. What fits goes into the channel.
	 */
	if (len > sizeof(vp->channels->data) || (len && vp->num_channels < nr_cpu_ids)) {
		copy = kmemdup(data, len, GFP_KERNEL);
		if (!copy)
			return -ENOMEM;
		args->addr = cpu_to_le64(virt_to_phys(copy));
	}
	/*
	 * Nothing else of this processor may use the channel meanwhile. That costs nobody anything:
	 * the processor stands still while the host works, whatever we do.
	 */
	channel = get_cpu();
	if (channel < vp->num_channels) {
		ret = vbus_pci_channel_call(vp, channel, args, data, len, copy);
		put_cpu();
	} else {
		put_cpu();
		ret = vbus_pci_call(vp, VBUS_PCI_FUNC_DEVICE_CALL, args, sizeof(*args));
	}
	if (ret >= 0 && copy)
		memcpy(data, copy, len);
	kfree(copy);
	return ret;
}

int vbus_pci_add_channels(struct vbus_pci *vp)
{
	u32 offered = readl(&vp->registers->num_channels);
	u32 wanted = min3(offered, (u32)VBUS_PCI_NUM_CHANNELS, (u32)nr_cpu_ids);
	struct vbus_pci_channel args = {};
	u32 i;
	int ret;

	/* Neither part of a box crosses a page. */
	BUILD_BUG_ON(PAGE_SIZE % sizeof(*vp->channels));
	BUILD_BUG_ON(offsetof(struct vbus_pci_box, args) !=
		     offsetof(struct vbus_pci_box, call.args));
	if (!wanted)
		return 0;
	vp->channels_bytes = wanted * sizeof(*vp->channels);
	vp->channels = alloc_pages_exact(vp->channels_bytes, GFP_KERNEL | __GFP_ZERO);
	if (!vp->channels)
		return -ENOMEM;
	for (i = 0; i < wanted; i++) {
		args.channel = cpu_to_le32(i);
		args.addr = cpu_to_le64(virt_to_phys(&vp->channels[i].call));
		ret = vbus_pci_call(vp, VBUS_PCI_FUNC_CHANNEL, &args, sizeof(args));
		if (ret < 0)
			return ret;
	}
	vp->num_channels = wanted;
	return 0;
}

/* After a reset: the host knows of none any more. */
void vbus_pci_free_channels(struct vbus_pci *vp)
{
	if (!vp->channels)
		return;
	vp->num_channels = 0;
	free_pages_exact(vp->channels, vp->channels_bytes);
	vp->channels = NULL;
}
