/** KVM_GET_MSRS and KVM_SET_MSRS (Linux arch/x86/kvm/x86.c, msr_io): in order, up to the first that fails. Filters do not count here. */
import { checkEntries, u32 } from '../../abi/layout.ts';
import { LinuxError } from '../../base/errors.ts';
import type { MsrEntry } from '../interface.ts';
import { FEATURE_MSRS, type GuestMsrs, MSR_RESULT } from './msrs.ts';

/** MAX_IO_MSRS */
const MAX_MSRS = 256;

function checkCount(name: string, count: number): void {
  if (count >= MAX_MSRS)
    throw new LinuxError('E2BIG', `${name}: ${count} MSRs, fewer than ${MAX_MSRS} can be named`);
}

export function checkMsrIndices(indices: readonly number[]): void {
  checkEntries(indices, 'kvm_msrs.entries');
  for (const index of indices) u32.check(index, 'kvm_msr_entry.index');
}

/** Errors: E2BIG. */
export function getMsrs(msrs: GuestMsrs, indices: readonly number[]): MsrEntry[] {
  checkCount('KVM_GET_MSRS', indices.length);
  const entries: MsrEntry[] = [];
  for (const index of indices) {
    if (msrs.read(index, 'host') !== MSR_RESULT.DONE) break;
    entries.push({ index, data: msrs.value });
  }
  return entries;
}

/** How many were written. Errors: E2BIG. */
export function setMsrs(msrs: GuestMsrs, entries: readonly MsrEntry[]): number {
  checkCount('KVM_SET_MSRS', entries.length);
  const failed = entries.findIndex(({ index, data }) => msrs.write(index, data, 'host') !== MSR_RESULT.DONE);
  return failed < 0 ? entries.length : failed;
}

/** KVM_GET_MSRS of /dev/kvm. Errors: E2BIG. */
export function getFeatureMsrs(indices: readonly number[]): MsrEntry[] {
  checkCount('KVM_GET_MSRS', indices.length);
  const known = indices.findIndex((index) => !FEATURE_MSRS.has(index));
  return indices
    .slice(0, known < 0 ? undefined : known)
    .map((index) => ({ index, data: FEATURE_MSRS.get(index)! }));
}
