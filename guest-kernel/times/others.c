// SPDX-License-Identifier: GPL-2.0
/* What the verbs are compared with. */
#include <linux/etherdevice.h>
#include <linux/if_arp.h>
#include <linux/io.h>
#include <linux/pci.h>
#include <linux/rtnetlink.h>
#include <uapi/linux/virtio_pci.h>

#include <alacrity/vbus_abi.h>

#include "times.h"

/* The port where init says how far it is; the VMM ignores this byte. */
#define TIMES_IGNORED_PORT	0xa00
#define TIMES_IGNORED_BYTE	0xff

/* A doorbell of the connector that no ring of a guest with few interfaces has. */
#define TIMES_SIGNAL		(VBUS_PCI_NUM_SIGNALS - 1)

#define TIMES_VIRTIO_VENDOR	0x1af4
#define TIMES_VIRTIO_NET	0x1041

static unsigned long times_ports;

int times_nothing(u32 num)
{
	while (num--)
		barrier();
	return 0;
}

int times_pio_exit(u32 num)
{
	while (num--)
		outb(TIMES_IGNORED_BYTE, TIMES_IGNORED_PORT);
	return 0;
}

/*
 * KVM compares the doorbells of the port for all in the order in which they were first rung since the
 * port was mapped. Maps it anew, and makes ours the first one, as if it were the only one. The ring of
 * vbus.c has a port of its own, among those of the event queues, as if they had all rung.
 */
int times_order_doorbells(void)
{
	struct pci_dev *pdev = pci_get_device(VBUS_PCI_VENDOR_ID, VBUS_PCI_DEVICE_ID, NULL);
	u16 command;
	u32 i;

	if (!pdev)
		return -ENODEV;
	times_ports = pci_resource_start(pdev, VBUS_PCI_PORTS_BAR) + VBUS_PCI_PORT_DOORBELL;
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	pci_write_config_word(pdev, PCI_COMMAND, command & ~PCI_COMMAND_IO);
	pci_write_config_word(pdev, PCI_COMMAND, command);
	outl(TIMES_SIGNAL, times_ports);
	for (i = 0; i < VBUS_PCI_NUM_EVENT_QUEUES; i++)
		outb(0, times_ports + VBUS_PCI_PORT_SIGNALS - VBUS_PCI_PORT_DOORBELL + i);
	pci_dev_put(pdev);
	return times_doorbell(1);
}

int times_pio_eventfd(u32 num)
{
	while (num--)
		outl(TIMES_SIGNAL, times_ports);
	return 0;
}

/* Where the doorbells of a virtio function are (VIRTIO 1.2, 4.1.4). */
static void __iomem *times_map_notify(struct pci_dev *pdev)
{
	u8 at, type, bar;
	u32 offset;

	for (at = pci_find_capability(pdev, PCI_CAP_ID_VNDR); at;
	     at = pci_find_next_capability(pdev, at, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, cfg_type), &type);
		if (type != VIRTIO_PCI_CAP_NOTIFY_CFG)
			continue;
		pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, bar), &bar);
		pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap, offset), &offset);
		return pci_iomap_range(pdev, bar, offset, sizeof(u32));
	}
	return NULL;
}

/*
 * The first doorbell of a virtio network interface, which has no driver: nobody waits for it. Enabled and
 * mapped when it is first rung, until the module goes: what that takes is no part of later batches.
 */
static struct pci_dev *times_rung;
static void __iomem *times_notify;

static int times_map_first(void)
{
	struct pci_dev *pdev = pci_get_device(TIMES_VIRTIO_VENDOR, TIMES_VIRTIO_NET, NULL);
	int ret;

	if (!pdev)
		return -ENODEV;
	device_lock(&pdev->dev);
	ret = pdev->dev.driver ? -EBUSY : pci_enable_device(pdev);
	if (ret)
		goto unlock;
	times_notify = times_map_notify(pdev);
	if (times_notify) {
		times_rung = pdev;
	} else {
		pci_disable_device(pdev);
		ret = -ENXIO;
	}
unlock:
	device_unlock(&pdev->dev);
	if (ret)
		pci_dev_put(pdev);
	return ret;
}

void times_unmap(void)
{
	if (!times_rung)
		return;
	pci_iounmap(times_rung, times_notify);
	pci_disable_device(times_rung);
	pci_dev_put(times_rung);
	times_rung = NULL;
}

/* One at a time: the lock of the module's parameters. */
int times_mmio_eventfd(u32 num)
{
	int ret = times_rung ? 0 : times_map_first();

	if (ret)
		return ret;
	if (times_rung->dev.driver)
		return -EBUSY;
	while (num--)
		iowrite16(0, times_notify);
	return 0;
}

static struct net_device *times_find_virtio_net(void)
{
	struct net_device *dev;

	for_each_netdev(&init_net, dev) {
		struct device *parent = dev->dev.parent;

		if (parent && parent->driver && !strcmp(parent->driver->name, "virtio_net"))
			return dev;
	}
	return NULL;
}

/*
 * A command of virtio-net's control queue that carries as much as our call: the address that the
 * interface has already. The driver's own function, which waits for the answer; what the kernel does
 * around it (notifiers) is left out.
 */
int times_control_queue(u32 num)
{
	struct sockaddr address = { .sa_family = ARPHRD_ETHER };
	struct net_device *dev;
	int ret = -ENODEV;

	rtnl_lock();
	dev = times_find_virtio_net();
	if (dev && dev->netdev_ops->ndo_set_mac_address) {
		ether_addr_copy(address.sa_data, dev->dev_addr);
		ret = 0;
		while (num-- && !ret)
			ret = dev->netdev_ops->ndo_set_mac_address(dev, &address);
	}
	rtnl_unlock();
	return ret;
}
