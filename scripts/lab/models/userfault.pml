/*
 * KVM userfault: enable, disable and re-arm while vCPUs fault.
 *
 * A memslot has two pages, which stage 2 maps one by one or as a block: with the
 * flag, where none is marked.  The VMM has a thread for ioctls, and one that marks,
 * drops and supplies pages.  Processes run forever.  Memory is sequentially consistent
 * here: the litmus tests show what the barriers are for.
 *
 * Each of these macros breaks something, for which an assertion must fail:
 *   LATE_SNAPSHOT, NO_RETRY				in a fault
 *   BLOCK_DESPITE_MARK, BLOCK_BEFORE_SNAPSHOT		in its sizing
 *   INVALIDATE_BEFORE_SWAP, INVALIDATE_BEFORE_GRACE	in an enable
 *   MARKS_BEFORE_SWAP					in what it unmaps
 *   INVALIDATE_ON_DISABLE, NO_GRACE_ON_DISABLE		in a disable
 *   GRACE_UNDER_LOCK					in both: a deadlock
 *   DROP_BEFORE_MARK, CLEAR_BEFORE_FILL		in the VMM
 *
 * With MIGRATE a page that is dropped keeps its content.
 */

/* The VMM's memory: the bitmap, and which pages have their content. */
bool marked[2];
bool filled[2] = true;

bool userfault;			/* KVM_MEM_USERFAULT in the active memslots. */
bool stage2[2];			/* The pages that are mapped. */
bool mmu_lock, mmu_invalidate_in_progress, mn_active_invalidate;

/*
 * For each vCPU.  The counter has no bound, but a fault only asks whether it
 * is still the same as in its snapshot.
 */
bool mmu_invalidate_seq_changed[2];
bool srcu_reader[2];
bool srcu_wait[2];		/* A grace period waits for this reader. */

/* What the VMM relies on. */
bool is_enabling, is_enabled, is_disabled = true;
bool marked_before[2];		/* Marked before the enable: when it returns */
bool exits_by_enable[2];	/* accesses exit until the page is supplied. */
bool exits_by_rearm[2];
bool mapped_before[2];		/* Mapped before the disable. */

#define pick(gfn)	 if :: gfn = 0 :: gfn = 1 fi
#define pick_marked(gfn) if :: marked[0] -> gfn = 0 :: marked[1] -> gfn = 1 fi

/* For an atomic sequence, which stays atomic as long as nothing in it waits. */
#define lock()		!mmu_lock -> mmu_lock = true
#define unlock()	mmu_lock = false

#define map_block()	stage2[0] = true; stage2[1] = true

inline kvm_s2_fault_test_userfault(gfn)
{
	if
	:: !has_userfault
	:: has_userfault -> atomic {
		assert(!is_disabled);	/* The VMM may have freed the bitmap. */
		if
		:: marked[gfn] -> goto out_unlock
		:: else
		fi }
	fi
}

/* The page itself has been looked at. */
inline kvm_s2_fault_userfault_size(gfn)
{
	can_block = !has_userfault || !marked[1 - gfn]
}

/* The first process: _pid is the number of the vCPU, 0 or 1. */
active [2] proctype vcpu()
{
	bit gfn;
	bool has_userfault, can_block, retry;

access:
	pick(gfn);
	if
	:: atomic { stage2[gfn] ->
		assert(!exits_by_enable[gfn]);
		assert(!exits_by_rearm[gfn]);
		assert(!is_enabled || filled[gfn]);	/* Not an empty page. */
		gfn = 0
	   }
	   goto access
	:: else
	fi;

	/*
	 * kvm_handle_guest_abort().  In one step: a swap in between would only
	 * make the grace period wait for a reader of the new memslots.
	 */
	atomic { srcu_reader[_pid] = true; has_userfault = userfault }

	/*
	 * user_mem_abort().  Without the flag the snapshot comes later, which
	 * makes the fault start over less often.
	 */
#ifdef BLOCK_BEFORE_SNAPSHOT
	kvm_s2_fault_userfault_size(gfn);
#endif
#ifdef LATE_SNAPSHOT
	kvm_s2_fault_test_userfault(gfn);
#endif
	mmu_invalidate_seq_changed[_pid] = false;
#ifndef LATE_SNAPSHOT
	kvm_s2_fault_test_userfault(gfn);
#endif
#ifndef BLOCK_BEFORE_SNAPSHOT
	kvm_s2_fault_userfault_size(gfn);
#endif

	atomic {	/* kvm_s2_fault_map() */
		lock();
		retry = mmu_invalidate_in_progress ||
			mmu_invalidate_seq_changed[_pid];
		if
		:: retry
		:: !retry -> stage2[gfn] = true
		:: !retry && can_block -> map_block()
#ifdef NO_RETRY
		:: stage2[gfn] = true
#endif
#ifdef BLOCK_DESPITE_MARK
		:: !retry -> map_block()
#endif
		fi;
		unlock()
	}

out_unlock:
	atomic {
		srcu_reader[_pid] = false;
		srcu_wait[_pid] = false;
		mmu_invalidate_seq_changed[_pid] = false;
		gfn = 0;
		has_userfault = false; can_block = false; retry = false;
		goto access
	}
}

inline synchronize_srcu()
{
	d_step { srcu_wait[0] = srcu_reader[0]; srcu_wait[1] = srcu_reader[1] }
	!srcu_wait[0] && !srcu_wait[1]
}

/* MMU notifiers that have started end before the swap. */
inline kvm_swap_active_memslots(flag)
{
	atomic { !mn_active_invalidate -> userfault = flag }
#ifdef GRACE_UNDER_LOCK
	atomic { lock() }
#endif
#ifdef INVALIDATE_BEFORE_GRACE
	if :: flag -> stage2_unmap_marked() :: else fi;
#endif
#ifdef NO_GRACE_ON_DISABLE
	if :: flag -> synchronize_srcu() :: else fi;
#else
	synchronize_srcu();
#endif
#ifdef GRACE_UNDER_LOCK
	unlock()
#endif
}

/* Both are in the same byte. */
inline read_marks()
{
	d_step { marks[0] = marked[0]; marks[1] = marked[1] }
}

/* A block goes as a whole.  Here its other page stays: that is the worse case. */
inline stage2_unmap_marked()
{
#ifndef MARKS_BEFORE_SWAP
	read_marks();
#endif
	atomic { lock(); stage2[0] = stage2[0] && !marks[0]; marks[0] = false; unlock() }
	atomic { lock(); stage2[1] = stage2[1] && !marks[1]; marks[1] = false; unlock() }
}

inline kvm_arch_flush_shadow_memslot()
{
	/* It gives way to others between two parts of a memslot. */
	atomic { lock(); stage2[0] = false; unlock() }
	atomic { lock(); stage2[1] = false; unlock() }
}

active proctype kvm_set_memory_region()
{
	bool marks[2];

	do
	:: d_step {	/* Enable. */
		is_disabled = false; is_enabling = true;
		marked_before[0] = marked[0]; marked_before[1] = marked[1]
	   }
#ifdef INVALIDATE_BEFORE_SWAP
	   stage2_unmap_marked();
#endif
#ifdef MARKS_BEFORE_SWAP
	   read_marks();
#endif
	   kvm_swap_active_memslots(true);
#if !defined(INVALIDATE_BEFORE_SWAP) && !defined(INVALIDATE_BEFORE_GRACE)
	   stage2_unmap_marked();
#endif
	   d_step {
		is_enabling = false; is_enabled = true;
		exits_by_enable[0] = marked_before[0]; marked_before[0] = false;
		exits_by_enable[1] = marked_before[1]; marked_before[1] = false
	   }

	   d_step {	/* Disable: nothing has to exit any more. */
		is_enabled = false;
		exits_by_enable[0] = false; exits_by_rearm[0] = false;
		exits_by_enable[1] = false; exits_by_rearm[1] = false;
		mapped_before[0] = stage2[0]; mapped_before[1] = stage2[1]
	   }
	   kvm_swap_active_memslots(false);
#ifdef INVALIDATE_ON_DISABLE
	   kvm_arch_flush_shadow_memslot();
#endif
	   d_step {
		assert(!mapped_before[0] || stage2[0]);
		assert(!mapped_before[1] || stage2[1]);
		mapped_before[0] = false; mapped_before[1] = false;
		is_disabled = true
	   }
	od
}

/* What else a block maps stays mapped: that is the worse case. */
inline drop(gfn)
{
	mn_active_invalidate = true;
	atomic {	/* kvm_mmu_notifier_invalidate_range_start() */
		lock();
		mmu_invalidate_in_progress = true;
		stage2[gfn] = false; mapped_before[gfn] = false;
		unlock()
	}
#ifndef MIGRATE
	filled[gfn] = false;
#endif
	atomic {	/* kvm_mmu_notifier_invalidate_range_end() */
		lock();
		mmu_invalidate_seq_changed[0] = srcu_reader[0];
		mmu_invalidate_seq_changed[1] = srcu_reader[1];
		mmu_invalidate_in_progress = false;
		unlock()
	}
	mn_active_invalidate = false
}

inline clear_bit(gfn)
{
	d_step {
		marked[gfn] = false; marked_before[gfn] = false;
		exits_by_enable[gfn] = false; exits_by_rearm[gfn] = false
	}
}

active proctype vmm()
{
	bit gfn;

	do
	:: atomic { pick(gfn); marked[gfn] = true; gfn = 0 }
	:: atomic { pick_marked(gfn) } ->	/* Re-arm. */
	   drop(gfn);
	   d_step {	/* It counts for an enable under way as well. */
		exits_by_rearm[gfn] = is_enabled;
		marked_before[gfn] = marked_before[gfn] || is_enabling;
		gfn = 0
	   }
	:: atomic { pick_marked(gfn) } ->	/* Supply. */
	   filled[gfn] = true;
	   atomic { clear_bit(gfn); gfn = 0 }
#ifdef DROP_BEFORE_MARK
	:: pick(gfn);
	   drop(gfn);
	   d_step { marked[gfn] = true; exits_by_rearm[gfn] = is_enabled }
#endif
#ifdef CLEAR_BEFORE_FILL
	:: pick_marked(gfn) -> clear_bit(gfn); filled[gfn] = true
#endif
	od
}
