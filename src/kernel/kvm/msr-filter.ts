/**
 * KVM_X86_SET_MSR_FILTER (Linux arch/x86/kvm/x86.c: kvm_vm_ioctl_set_msr_filter, kvm_add_msr_filter, kvm_msr_allowed): which MSRs a guest may read and
 * write. The first range that has the MSR and the kind of access decides, else the default.
 */
import { KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE } from '../../abi/kvm.ts';
import { kvm_msr_filter } from '../../abi/kvm-structs.ts';
import { checkBytes, checkEntries } from '../../abi/layout.ts';
import { LinuxError } from '../../base/errors.ts';
import type { MsrFilter } from '../interface.ts';

const RANGE_FLAGS = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
const MAX_BITMAP_BYTES = 0x600;

/** What a field of the structure, or its 16 ranges, cannot hold. */
export function checkMsrFilter({ flags, ranges }: MsrFilter): void {
  checkEntries(ranges, 'kvm_msr_filter.ranges');
  kvm_msr_filter.check({
    flags,
    ranges: ranges.map(({ flags, base, nmsrs }) => ({ flags, base, nmsrs, bitmap: 0n })),
  });
  for (const [i, { bitmap }] of ranges.entries()) checkBytes(bitmap, 0, `kvm_msr_filter.ranges[${i}].bitmap`);
}

export class MsrPermissions {
  readonly #allowed: boolean;
  readonly #ranges: MsrFilter['ranges'];

  /** Errors, in order: EINVAL (flags; DEFAULT_DENY without a range; a range's flags, its size), EFAULT (a bitmap that ends before its range). */
  constructor({ flags, ranges }: MsrFilter) {
    if ((flags & ~KVM_MSR_FILTER_DEFAULT_DENY) !== 0) invalid(`flags ${flags}, want 0 or 1`);
    const used = ranges.filter(({ nmsrs }) => nmsrs !== 0);
    this.#allowed = (flags & KVM_MSR_FILTER_DEFAULT_DENY) === 0;
    if (used.length === 0 && !this.#allowed) invalid('DEFAULT_DENY without a range');
    this.#ranges = used.map((range) => {
      if ((range.flags & ~RANGE_FLAGS) !== 0 || range.flags === 0)
        invalid(`flags ${range.flags} of the range at 0x${range.base.toString(16)}, want 1, 2 or 3`);
      const bytes = Math.ceil(range.nmsrs / 64) * 8;
      if (bytes > MAX_BITMAP_BYTES)
        invalid(`a bitmap of ${bytes} bytes at 0x${range.base.toString(16)}, at most ${MAX_BITMAP_BYTES}`);
      if (range.bitmap.length < Math.ceil(range.nmsrs / 8))
        throw new LinuxError(
          'EFAULT',
          `KVM_X86_SET_MSR_FILTER: ${range.bitmap.length} bytes for ${range.nmsrs} MSRs`,
        );
      return { ...range, bitmap: range.bitmap.slice() };
    });
  }

  allows(msr: number, access: 'read' | 'write'): boolean {
    const kind = access === 'read' ? KVM_MSR_FILTER_READ : KVM_MSR_FILTER_WRITE;
    for (const { flags, base, nmsrs, bitmap } of this.#ranges) {
      const at = msr - base;
      if (at >= 0 && at < nmsrs && (flags & kind) !== 0) return ((bitmap[at >>> 3]! >>> (at & 7)) & 1) !== 0;
    }
    return this.#allowed;
  }
}

/** x2APIC registers are never filtered. */
const isX2apic = (msr: number): boolean => msr >= 0x800 && msr <= 0x8ff;

export const msrAllowed = (
  filter: MsrPermissions | undefined,
  msr: number,
  access: 'read' | 'write',
): boolean => filter === undefined || isX2apic(msr) || filter.allows(msr, access);

function invalid(what: string): never {
  throw new LinuxError('EINVAL', `KVM_X86_SET_MSR_FILTER: ${what}`);
}
