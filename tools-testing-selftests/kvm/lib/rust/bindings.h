/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen reads to make the bindings of the Rust tests to libkvm. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/userfaultfd.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Numbers whose macros bindgen does not evaluate, ioctl requests above all. */
enum {
	LIBKVM_RUN = KVM_RUN,
	LIBKVM_CHECK_EXTENSION = KVM_CHECK_EXTENSION,
	LIBKVM_CREATE_GUEST_MEMFD = KVM_CREATE_GUEST_MEMFD,
	LIBKVM_ENABLE_CAP = KVM_ENABLE_CAP,
	LIBKVM_CREATE_VM = KVM_CREATE_VM,
	LIBKVM_GET_DIRTY_LOG = KVM_GET_DIRTY_LOG,
	LIBKVM_SET_USER_MEMORY_REGION = KVM_SET_USER_MEMORY_REGION,
	LIBKVM_SET_USER_MEMORY_REGION2 = KVM_SET_USER_MEMORY_REGION2,
	LIBKVM_DIRTY_GFN_F_DIRTY = KVM_DIRTY_GFN_F_DIRTY,
	LIBKVM_GUEST_MEMFD_FLAGS = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	LIBKVM_VM_TYPE_PROTECTED = KVM_VM_TYPE_ARM_PROTECTED,
	LIBKVM_UFFD_API = UFFD_API,
	LIBKVM_UFFD_EVENT_PAGEFAULT = UFFD_EVENT_PAGEFAULT,
	LIBKVM_UFFDIO_REGISTER_MODE_MISSING = UFFDIO_REGISTER_MODE_MISSING,
	LIBKVM_UFFDIO_API = UFFDIO_API,
	LIBKVM_UFFDIO_REGISTER = UFFDIO_REGISTER,
	LIBKVM_UFFDIO_COPY = UFFDIO_COPY,
};
