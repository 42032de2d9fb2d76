/**
 * KVM_PRE_FAULT_MEMORY: maps guest memory before the guest asks for it (Linux virt/kvm/kvm_main.c kvm_vcpu_pre_fault_memory;
 * arch/x86/kvm/mmu/mmu.c kvm_arch_vcpu_pre_fault_memory, kvm_tdp_map_page; reference facts 1.8). Each step is a read fault on the page at
 * `gpa`, private or shared as its attribute says now.
 *
 * Linux keeps the caller in the call while something is in the way; here the call is on the kernel's one thread, so nothing could ever
 * get out of it. It ends as a signal would end it, EINTR, and a page that is on its way from elsewhere makes it EAGAIN.
 */
import { u64 } from '../../abi/layout.ts';
import { type Gpa, gfnOf, gpaOf, PAGE_SIZE, wrapsAround } from '../../base/address.ts';
import { type ErrnoName, errnoName, LinuxError } from '../../base/errors.ts';
import type { PreFaultRange } from '../interface.ts';
import { pagesPerEntry } from './mmu/guest-memory.ts';
import { PageFault, RET_PF } from './mmu/page-fault.ts';
import type { Vcpu } from './vcpu.ts';

const PAGE = BigInt(PAGE_SIZE);

/**
 * The part of the range that is left (facts 1.8: success as soon as one page was mapped). Errors when none was: EINVAL (flags,
 * alignment, empty, wraps), ENOENT (no slot there), EFAULT, EHWPOISON, ENOMEM, EAGAIN, EINTR.
 */
export function preFaultMemory(
  vcpu: Vcpu,
  { gpa, size, flags }: PreFaultRange & { flags: bigint },
): PreFaultRange {
  u64.check(gpa, 'kvm_pre_fault_memory.gpa');
  u64.check(size, 'kvm_pre_fault_memory.size');
  u64.check(flags, 'kvm_pre_fault_memory.flags');
  if (flags !== 0n) throw new LinuxError('EINVAL', `KVM_PRE_FAULT_MEMORY: flags ${flags}, want 0`);
  if (gpa % PAGE !== 0n || size % PAGE !== 0n || size === 0n || wrapsAround(gpa, size))
    throw new LinuxError(
      'EINVAL',
      `KVM_PRE_FAULT_MEMORY: ${size} bytes at ${gpa}: want whole pages, at least one, that do not wrap around`,
    );
  const fault = new PageFault();
  let at = gpa;
  const end = gpa + size;
  while (at < end) {
    const failure = mapPage(vcpu, fault, Number(at) as Gpa);
    if (failure === undefined) {
      const pages = pagesPerEntry(fault.level);
      const mappedEnd = BigInt(gpaOf(fault.gfn)) + BigInt(pages - (fault.gfn % pages)) * PAGE;
      at = mappedEnd < end ? mappedEnd : end;
      continue;
    }
    if (at === gpa) throw new LinuxError(failure, `KVM_PRE_FAULT_MEMORY: the page at 0x${at.toString(16)}`);
    break;
  }
  return { gpa: at, size: end - at };
}

/** kvm_tdp_map_page: undefined, and `fault` tells the level; or why not. */
function mapPage(vcpu: Vcpu, fault: PageFault, gpa: Gpa): ErrnoName | undefined {
  const { vm, faults, kvmRun } = vcpu;
  // pre_fault_allowed: an encrypted guest's pages are measured first.
  if (vm.sev !== undefined && !vm.sev.launched) return 'EOPNOTSUPP';
  fault.begin(gpa, 0, vm.attributes.isPrivate(gfnOf(gpa)) ? 'private' : 'shared');
  let outcome: number;
  try {
    outcome = faults.handle(fault, kvmRun);
  } catch (error) {
    // A poisoned page of the process.
    if (error instanceof LinuxError) return error.code;
    throw error;
  }
  if (outcome < 0) return errnoName(-outcome) ?? 'EIO';
  switch (outcome) {
    case RET_PF.FIXED:
    case RET_PF.SPURIOUS:
      return undefined;
    case RET_PF.EMULATE:
      return 'ENOENT';
    case RET_PF.PENDING:
      return 'EAGAIN';
    default:
      return fault.slot?.invalid ? vm.policy.preFaultOfDyingSlot : 'EINTR';
  }
}
