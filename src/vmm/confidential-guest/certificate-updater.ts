/**
 * The other side of certificate-source.ts: whoever changes what reports are signed with (SNP_COMMIT, SNP_SET_CONFIG, SNP_VLEK_LOAD through /dev/sev) changes the
 * certificates with it, under the file's exclusive lock (Linux Documentation/virt/kvm/api.rst, KVM_EXIT_SNP_REQ_CERTS).
 */
import { requireBytes, requireFunction, requireText } from '../../base/option-checks.ts';
import type { Process } from '../../kernel/interface.ts';

/**
 * Runs `change`, which returns the certificate table that holds from then on, and writes that to the file at `path`, with no report under way. Returns false, and
 * has changed nothing, while a guest's request holds the lock. What `change` throws comes out, and the table stays. Where the new table cannot be written (LinuxError: ENOSPC)
 * the file is left empty: no certificates rather than wrong ones. RangeError: an argument of a wrong kind, or what `change` returned; then the file is as it was.
 */
export function updateCertificates(process: Process, path: string, change: () => Uint8Array): boolean {
  if (typeof process?.open !== 'function')
    throw new RangeError('process: got something else, want a Process');
  requireText('path', path);
  requireFunction('change', change);
  const fd = process.open(path);
  try {
    if (!process.lock(fd, 'exclusive')) return false;
    const table = change();
    requireBytes('what change returned', table);
    process.ftruncate(fd, 0n);
    try {
      process.pwrite(fd, table, 0n);
    } catch (error) {
      process.ftruncate(fd, 0n);
      throw error;
    }
    return true;
  } finally {
    process.close(fd);
  }
}
