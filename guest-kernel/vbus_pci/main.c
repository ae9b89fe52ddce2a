// SPDX-License-Identifier: GPL-2.0
/* The PCI function through which the guest reaches its bus (docs/abi.md, "PCI connector"). */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "vbus_pci.h"

static unsigned int max_vectors = VBUS_PCI_NUM_VECTORS;
module_param(max_vectors, uint, 0444);
MODULE_PARM_DESC(max_vectors, "interrupt vectors to use at most; rings that get none share others");

/*
 * Back to the initial state: when this returns, the host has let go of everything. The host counts
 * it, so that vbus_close() knows.
 */
void vbus_pci_reset(struct vbus_pci *vp)
{
	writel(1, &vp->registers->reset);
	vbus_connector_gone(&vp->connector);
}

static int vbus_pci_map(struct vbus_pci *vp)
{
	struct pci_dev *pdev = vp->pdev;
	int ret;

	ret = pci_enable_device(pdev);
	if (ret)
		return ret;
	ret = pci_request_regions(pdev, KBUILD_MODNAME);
	if (ret)
		goto disable;
	if (pci_resource_len(pdev, VBUS_PCI_REGISTERS_BAR) < sizeof(*vp->registers) ||
	    !(pci_resource_flags(pdev, VBUS_PCI_PORTS_BAR) & IORESOURCE_IO) ||
	    pci_resource_len(pdev, VBUS_PCI_PORTS_BAR) < VBUS_PCI_PORT_FAST_CALL + sizeof(u32)) {
		ret = -ENODEV;
		goto release;
	}
	vp->ports = pci_resource_start(pdev, VBUS_PCI_PORTS_BAR);
	vp->registers = pci_ioremap_bar(pdev, VBUS_PCI_REGISTERS_BAR);
	if (!vp->registers) {
		ret = -ENOMEM;
		goto release;
	}
	return 0;

release:
	pci_release_regions(pdev);
disable:
	pci_disable_device(pdev);
	return ret;
}

static void vbus_pci_unmap(struct vbus_pci *vp)
{
	iounmap(vp->registers);
	pci_release_regions(vp->pdev);
	pci_disable_device(vp->pdev);
}

static int vbus_pci_negotiate(struct vbus_pci *vp)
{
	struct vbus_pci_negotiate args = {
		.version = cpu_to_le32(VBUS_PCI_VERSION),
		.capabilities = cpu_to_le64(VBUS_PCI_CAP_DEVICE_LOST | VBUS_PCI_CAP_SIGNAL_PORTS),
	};
	u32 magic = readl(&vp->registers->magic);
	u32 version = readl(&vp->registers->version);
	int ret;

	if (magic != VBUS_PCI_MAGIC || version != VBUS_PCI_VERSION) {
		dev_err(&vp->pdev->dev, "no connector of version %u (magic %#x, version %u)\n",
			VBUS_PCI_VERSION, magic, version);
		return -ENODEV;
	}
	if (readl(&vp->registers->num_event_queues) != VBUS_PCI_NUM_EVENT_QUEUES)
		return -ENODEV;
	writel(1, &vp->registers->reset); /* whatever a kernel before us left open */
	vp->num_resets = readl(&vp->registers->num_resets);
	ret = vbus_pci_call(vp, VBUS_PCI_FUNC_NEGOTIATE, &args, sizeof(args));
	if (ret >= 0 && le64_to_cpu(args.capabilities) & VBUS_PCI_CAP_SIGNAL_PORTS &&
	    pci_resource_len(vp->pdev, VBUS_PCI_PORTS_BAR) >= VBUS_PCI_PORTS_BAR_BYTES)
		vp->num_signal_ports = VBUS_PCI_NUM_SIGNALS;
	return ret;
}

static int vbus_pci_take_vectors(struct vbus_pci *vp)
{
	u32 most = min3(readl(&vp->registers->num_vectors), (u32)VBUS_PCI_NUM_VECTORS, max_vectors);
	int ret;

	ret = pci_alloc_irq_vectors(vp->pdev, 1, max(most, 1U), PCI_IRQ_MSIX);
	if (ret < 0)
		return ret;
	vp->num_vectors = ret;
	return 0;
}

/* The host has let go of everything, and no driver uses anything. */
static void vbus_pci_free_all(struct vbus_pci *vp)
{
	vbus_pci_free_queues(vp);
	vbus_pci_free_channels(vp);
	if (vp->num_vectors)
		pci_free_irq_vectors(vp->pdev);
	pci_clear_master(vp->pdev);
	destroy_workqueue(vp->workqueue);
	vbus_pci_unmap(vp);
	kfree(vp);
}

static int vbus_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vbus_pci *vp;
	int ret;

	if (pdev->revision != VBUS_PCI_REVISION)
		return -ENODEV;
	vp = kzalloc(sizeof(*vp), GFP_KERNEL);
	if (!vp)
		return -ENOMEM;
	vp->pdev = pdev;
	mutex_init(&vp->vectors_lock);
	spin_lock_init(&vp->pending_lock);
	INIT_KFIFO(vp->pending);
	INIT_WORK(&vp->work, vbus_pci_work);
	vp->workqueue = alloc_ordered_workqueue("vbus_pci", 0);
	if (!vp->workqueue) {
		ret = -ENOMEM;
		goto free;
	}
	ret = vbus_pci_map(vp);
	if (ret)
		goto destroy;
	pci_set_drvdata(pdev, vp);
	pci_set_master(pdev);
	vp->connector.parent = &pdev->dev;
	vp->connector.ops = &vbus_pci_ops;
	ret = vbus_connector_register(&vp->connector);
	if (ret)
		goto unmap;

	ret = vbus_pci_negotiate(vp);
	if (ret < 0)
		goto reset;
	ret = vbus_pci_take_vectors(vp);
	if (ret)
		goto reset;
	ret = vbus_pci_add_queues(vp);
	if (ret)
		goto reset;
	ret = vbus_pci_add_channels(vp);
	if (ret)
		goto reset;
	ret = vbus_pci_call(vp, VBUS_PCI_FUNC_START, NULL, 0);
	if (ret < 0)
		goto reset;
	/* Devices that are on the bus from the start are there when this returns. */
	vbus_pci_drain_queues(vp);
	flush_workqueue(vp->workqueue);
	return 0;

reset:
	dev_err(&pdev->dev, "cannot connect to the bus: %d\n", ret);
	WRITE_ONCE(vp->is_ending, true);
	vbus_pci_reset(vp);
	pci_set_drvdata(pdev, NULL);
	vbus_connector_unregister(&vp->connector);
	vbus_pci_free_all(vp);
	return ret;
unmap:
	pci_set_drvdata(pdev, NULL);
	pci_clear_master(pdev);
	vbus_pci_unmap(vp);
destroy:
	destroy_workqueue(vp->workqueue);
free:
	kfree(vp);
	return ret;
}

static void vbus_pci_remove(struct pci_dev *pdev)
{
	struct vbus_pci *vp = pci_get_drvdata(pdev);

	if (!vp)
		return; /* it did not come back after a reset */
	pci_set_drvdata(pdev, NULL);
	WRITE_ONCE(vp->is_ending, true);
	cancel_work_sync(&vp->work);
	/* If the function is gone already, there is nobody to say that memory is let go. */
	if (readl(&vp->registers->magic) != VBUS_PCI_MAGIC)
		vbus_connector_gone(&vp->connector);
	vbus_connector_unregister(&vp->connector);
	vbus_pci_reset(vp);
	vbus_pci_free_all(vp);
}

/* A kernel that is started from this one finds nothing at work. */
static void vbus_pci_shutdown(struct pci_dev *pdev)
{
	struct vbus_pci *vp = pci_get_drvdata(pdev);

	if (!vp)
		return;
	WRITE_ONCE(vp->is_ending, true);
	vbus_pci_reset(vp);
}

/* A reset of the function, which somebody asked for in sysfs, is a driver that goes and returns. */
static void vbus_pci_reset_done(struct pci_dev *pdev)
{
	vbus_pci_probe(pdev, NULL);
}

static const struct pci_error_handlers vbus_pci_error_handlers = {
	.reset_prepare = vbus_pci_remove,
	.reset_done = vbus_pci_reset_done,
};

static const struct pci_device_id vbus_pci_ids[] = {
	{ PCI_DEVICE(VBUS_PCI_VENDOR_ID, VBUS_PCI_DEVICE_ID) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vbus_pci_ids);

static struct pci_driver vbus_pci_driver = {
	.name = KBUILD_MODNAME,
	.id_table = vbus_pci_ids,
	.probe = vbus_pci_probe,
	.remove = vbus_pci_remove,
	.shutdown = vbus_pci_shutdown,
	.err_handler = &vbus_pci_error_handlers,
};
module_pci_driver(vbus_pci_driver);

MODULE_DESCRIPTION("Virtual bus over PCI");
MODULE_LICENSE("GPL");
