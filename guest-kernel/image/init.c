// SPDX-License-Identifier: GPL-2.0
/*
 * The first program of the guest, and its line to the VMM.
 *
 * As /init it mounts the kernel's file systems, reports that the guest's
 * user space runs, and hands over to the shell script /etc/rc. It is not a
 * script itself because the VMM measures the time to that report, and a shell
 * would fork once per mount.
 *
 * As /sbin/vmm it does for /etc/rc what a shell cannot:
 *
 *   vmm start            make the terminal on stdin raw, report "exec begins"
 *   vmm finish STATUS    drain stdin's terminal, report STATUS, power off
 *   vmm off | reboot     sync, then power off or reset at once
 *   vmm run APPLET ...   become that busybox applet, which Ctrl-C can interrupt:
 *                        a shell's background jobs have SIGINT ignored for good
 *   vmm hotplug          from its return on, load drivers for devices that are
 *                        added to the virtual bus
 *
 * Reports are single bytes written to I/O ports (stock Debian cloud kernels
 * have no /dev/port, hence ioperm). Nothing answers there under other VMMs,
 * and writes to ports that nobody decodes have no effect.
 *
 *   port    bytes
 *   0x0a00  milestones: 1 = user space runs, 2 = the command begins
 *   0x0a01  the command's exit status
 *
 * No libc: the file is 2 kB instead of 800, and starts sooner.
 */
#include <asm/errno.h>
#include <asm/termbits.h>
#include <asm/ioctls.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/netlink.h>
#include <linux/reboot.h>
#include <asm/sigcontext.h>
#include <asm/signal.h>
#include <asm/ucontext.h>
#include <linux/socket.h>
#include <stddef.h>

#define PORT_MILESTONE	0x0a00
#define PORT_STATUS	0x0a01
#define NUM_PORTS	2

#define MILESTONE_INIT	1
#define MILESTONE_EXEC	2

#define MAX_CMDLINE	4096

#define SOCK_DGRAM	2 /* of the C library's headers, like the next */
#define AF_NETLINK	16
#define UEVENT_GROUP	1 /* of messages from the kernel */
#define MAX_UEVENT	4096

#define OUT_BYTES	1 /* of "outb %al, %dx" */

#define NUMBER(n)	NUMBER_(n)
#define NUMBER_(n)	#n

static long sys5(long nr, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return ret;
}

#define sys(nr, a, b, c) \
	sys5(__NR_##nr, (long)(a), (long)(b), (long)(c), 0, 0)

static void mount_fs(const char *type, const char *dir, const char *options)
{
	sys(mkdir, dir, 0755, 0);
	sys5(__NR_mount, (long)type, (long)dir, (long)type, 0, (long)options);
}

/*
 * Skips the OUT that was refused. ioperm() allows it, but QEMU's emulated AMD-V
 * refuses it all the same to a nested guest whose task register went through
 * system management mode, as it does in nested QEMU itself.
 */
__attribute__((used)) static void skip_out(int sig, void *info,
					   struct ucontext *context)
{
	(void)sig;
	(void)info;
	context->uc_mcontext.rip += OUT_BYTES;
}

void restore_context(void);

__asm__("restore_context:\n"
	"	mov $" NUMBER(__NR_rt_sigreturn) ", %eax\n"
	"	syscall\n");

static void report(unsigned short port, unsigned char value)
{
	static const struct sigaction skip = {
		.sa_handler = (__sighandler_t)(void *)skip_out,
		.sa_flags = SA_SIGINFO | SA_RESTORER,
		.sa_restorer = restore_context,
	};

	if (sys(ioperm, PORT_MILESTONE, NUM_PORTS, 1) < 0)
		return;
	sys5(__NR_rt_sigaction, SIGSEGV, (long)&skip, 0, sizeof(skip.sa_mask),
	     0);
	__asm__ volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static int equal(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

/* Whether @word is one of the words of the kernel's command line. */
static int in_cmdline(const char *word)
{
	static char cmdline[MAX_CMDLINE];
	long fd, len, i, start = 0;

	fd = sys(open, "/proc/cmdline", O_RDONLY, 0);
	if (fd < 0)
		return 0;
	len = sys(read, fd, cmdline, sizeof(cmdline) - 1);
	sys(close, fd, 0, 0);
	for (i = 0; i < len; i++) {
		if (cmdline[i] != ' ' && cmdline[i] != '\n')
			continue;
		cmdline[i] = '\0';
		if (equal(cmdline + start, word))
			return 1;
		start = i + 1;
	}
	return 0;
}

/* Gives this process the console as stdin, stdout and stderr. */
static void open_console(void)
{
	long fd = sys(open, "/dev/console", O_RDWR, 0);

	if (fd < 0)
		return;
	sys(dup2, fd, 0, 0);
	sys(dup2, fd, 1, 0);
	sys(dup2, fd, 2, 0);
	if (fd > 2)
		sys(close, fd, 0, 0);
}

static void first_program(void)
{
	static const char marker[] = "alacrity: guest init\n";
	static char *argv[] = { "sh", "/etc/rc", NULL };
	static char *envp[] = {
		"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root",
		"TERM=xterm", "USER=root", "SHELL=/bin/sh", NULL
	};

	mount_fs("devtmpfs", "/dev", "mode=0755");
	mount_fs("proc", "/proc", NULL);
	open_console();
	if (in_cmdline("alacrity.marker"))
		sys(write, 1, marker, sizeof(marker) - 1);
	report(PORT_MILESTONE, MILESTONE_INIT);
	mount_fs("sysfs", "/sys", NULL);
	mount_fs("devpts", "/dev/pts", "mode=0620,ptmxmode=0666");
	mount_fs("tmpfs", "/dev/shm", "mode=1777");
	sys(execve, "/bin/busybox", argv, envp);
}

/* Stops the terminal on stdin from changing what passes through it. */
static void make_raw(void)
{
	struct termios t;

	if (sys(ioctl, 0, TCGETS, &t) < 0)
		return;
	t.c_iflag = 0;
	t.c_oflag = 0;
	t.c_lflag = 0;
	t.c_cflag = B115200 | CS8 | CREAD | CLOCAL;
	sys(ioctl, 0, TCSETS, &t);
}

static void end_vm(long command)
{
	sys(sync, 0, 0, 0);
	sys5(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, 0,
	     0);
}

static unsigned char number(const char *digits)
{
	unsigned int n = 0;

	while (*digits >= '0' && *digits <= '9')
		n = n * 10 + (unsigned int)(*digits++ - '0');
	return (unsigned char)n;
}

/* Gives SIGINT and SIGQUIT their default action again and runs busybox. */
static void become(char **argv)
{
	static const struct sigaction by_default = { .sa_handler = SIG_DFL };
	char **envp = argv;

	sys5(__NR_rt_sigaction, SIGINT, (long)&by_default, 0,
	     sizeof(by_default.sa_mask), 0);
	sys5(__NR_rt_sigaction, SIGQUIT, (long)&by_default, 0,
	     sizeof(by_default.sa_mask), 0);
	while (*envp++) /* the environment follows the arguments */
		;
	sys(execve, "/bin/busybox", argv, envp);
}

/* The rest of @string if it begins with @prefix, or NULL. */
static char *after(char *string, const char *prefix)
{
	while (*prefix && *string == *prefix) {
		string++;
		prefix++;
	}
	return *prefix ? NULL : string;
}

static void load_driver(char *alias)
{
	char *argv[] = { "modprobe", "-q", alias, NULL };
	char *envp[] = { "PATH=/bin:/sbin", NULL };
	long pid = sys(fork, 0, 0, 0);

	if (pid == 0) {
		sys(execve, "/bin/busybox", argv, envp);
		sys(exit, 127, 0, 0);
	}
	if (pid > 0)
		sys5(__NR_wait4, pid, 0, 0, 0, 0);
}

/*
 * The kernel tells of each device in a message of strings. Debian's kernels can
 * start no program by themselves (CONFIG_UEVENT_HELPER), and what busybox has
 * for this starts one for each message, whatever it is about.
 */
static int hotplug(void)
{
	static const struct sockaddr_nl kernel = {
		.nl_family = AF_NETLINK,
		.nl_groups = UEVENT_GROUP,
	};
	static char message[MAX_UEVENT + 1];
	char *string, *alias;
	long fd, pid, len;

	fd = sys(socket, AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT);
	if (fd < 0 || sys(bind, fd, &kernel, sizeof(kernel)) < 0)
		return 1;
	pid = sys(fork, 0, 0, 0);
	if (pid != 0)
		return pid < 0;
	sys(setsid, 0, 0, 0);
	for (;;) {
		len = sys(read, fd, message, MAX_UEVENT);
		if (len == -ENOBUFS)
			continue; /* some were lost */
		if (len < 0)
			return 1;
		message[len] = '\0';
		if (!after(message, "add@"))
			continue;
		for (string = message; string < message + len; string++) {
			alias = after(string, "MODALIAS=");
			if (alias && after(alias, "vbus:"))
				load_driver(alias);
			while (*string)
				string++;
		}
	}
}

static int run(int argc, char **argv)
{
	if (sys(getpid, 0, 0, 0) == 1) {
		first_program();
	} else if (argc == 2 && equal(argv[1], "start")) {
		make_raw();
		report(PORT_MILESTONE, MILESTONE_EXEC);
		return 0;
	} else if (argc == 3 && equal(argv[1], "finish")) {
		sys(ioctl, 0, TCSBRK, 1); /* tcdrain() */
		report(PORT_STATUS, number(argv[2]));
		end_vm((long)LINUX_REBOOT_CMD_POWER_OFF);
	} else if (argc == 2 && equal(argv[1], "off")) {
		end_vm((long)LINUX_REBOOT_CMD_POWER_OFF);
	} else if (argc == 2 && equal(argv[1], "reboot")) {
		end_vm((long)LINUX_REBOOT_CMD_RESTART);
	} else if (argc == 2 && equal(argv[1], "hotplug")) {
		return hotplug();
	} else if (argc > 2 && equal(argv[1], "run")) {
		become(argv + 2);
	}
	return 1;
}

/* Called by _start with the stack that the kernel made. */
__attribute__((used, noreturn)) static void begin(long *stack)
{
	long status = run((int)stack[0], (char **)&stack[1]);

	for (;;)
		sys(exit, status, 0, 0);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call begin\n");
