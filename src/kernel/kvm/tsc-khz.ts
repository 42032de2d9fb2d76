/**
 * KVM_SET_TSC_KHZ (Linux arch/x86/kvm/x86.c, kvm_set_tsc_khz, set_tsc_khz) on a processor that cannot scale its time stamp counter.
 * Left out: a guest's counter that is faster than the host's, which Linux lets catch up at each exit (throws by name).
 */
import { LinuxError, NotImplementedError } from '../../base/errors.ts';
import { HOST_TSC_KHZ } from './host-time.ts';

/** Parts per million by which a guest's frequency may differ without scaling. */
const TOLERANCE = 250;
const MILLION = 1_000_000;

/** The frequency that the guest has from now on. `khz` 0: the host's. Errors: EINVAL for a slower one. */
export function guestTscKhz(khz: number): number {
  if (khz === 0) return HOST_TSC_KHZ;
  const low = Math.floor((HOST_TSC_KHZ * (MILLION - TOLERANCE)) / MILLION);
  const high = Math.floor((HOST_TSC_KHZ * (MILLION + TOLERANCE)) / MILLION);
  if (khz < low)
    throw new LinuxError(
      'EINVAL',
      `KVM_SET_TSC_KHZ ${khz}: this processor does not scale its ${HOST_TSC_KHZ} kHz`,
    );
  if (khz > high) throw new NotImplementedError('a time stamp counter that is faster than the host’s');
  return khz;
}
