/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen reads to make the bindings of the Rust tests to libkvm. */
#include <errno.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/userfaultfd.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* ioctl requests, whose macros bindgen does not evaluate. */
enum {
	LIBKVM_CHECK_EXTENSION = KVM_CHECK_EXTENSION,
	LIBKVM_ENABLE_CAP = KVM_ENABLE_CAP,
	LIBKVM_SET_USER_MEMORY_REGION = KVM_SET_USER_MEMORY_REGION,
	LIBKVM_SET_USER_MEMORY_REGION2 = KVM_SET_USER_MEMORY_REGION2,
	LIBKVM_UFFD_API = UFFD_API,
	LIBKVM_UFFD_EVENT_PAGEFAULT = UFFD_EVENT_PAGEFAULT,
	LIBKVM_UFFDIO_REGISTER_MODE_MISSING = UFFDIO_REGISTER_MODE_MISSING,
	LIBKVM_UFFDIO_API = UFFDIO_API,
	LIBKVM_UFFDIO_REGISTER = UFFDIO_REGISTER,
	LIBKVM_UFFDIO_COPY = UFFDIO_COPY,
};
