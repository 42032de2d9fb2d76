/** CPUID page: checked in cpuid-rules.ts. */
import type { Personality } from '../chip.ts';
export function correctCpuidPage(_personality: Personality, _page: Uint8Array): number {
  return 0;
}
