/** A table of CPUID answers: the page of LAUNCH_UPDATE type CPUID, and what CPUID messages carry (AMD's firmware source, sanitize_cpuid_list). */
import { CPUID_ENTRIES_MAX, cpuidFunction, cpuidPage } from '../../abi/guest-message.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { type CpuidRules, isChecked } from './cpuid-rules.ts';

/**
 * Checks the `count` entries that stand in `table` from `offset` on, and corrects them in place. Returns a status, and how many of them firmware looked at.
 */
export function correctEntries(
  rules: CpuidRules,
  table: Uint8Array,
  offset: number,
  count: number,
): { status: number; checked: number } {
  let status: number = SEV_STATUS.SUCCESS;
  let checked = 0;
  for (let i = 0; i < count; i++) {
    const at = offset + i * cpuidFunction.size;
    const entry = cpuidFunction.view(table.subarray(at, at + cpuidFunction.size));
    if (!rules.correct(entry)) status = SEV_STATUS.INVALID_PARAM;
    if (isChecked(entry.eaxIn)) checked++;
  }
  return { status, checked };
}

/** Checks a CPUID page and corrects it in place. Returns a status. */
export function correctCpuidPage(rules: CpuidRules, page: Uint8Array): number {
  const { count, reserved, reserved2 } = cpuidPage.view(page);
  if (reserved !== 0 || reserved2 !== 0n || count > CPUID_ENTRIES_MAX) return SEV_STATUS.INVALID_PARAM;
  return correctEntries(rules, page, cpuidPage.offsets.entries, count).status;
}
