/**
 * /dev/sev (Linux drivers/crypto/ccp/sev-dev.c, sev_ioctl): a file whose holders may have KVM ask firmware for them.
 *
 * Left out so far: its own ioctl, SEV_ISSUE_CMD.
 */
import { LinuxError } from '../../base/errors.ts';
import { type FileOperations, type FileTable, OpenFile } from '../files.ts';
import type { Psp } from './psp.ts';

class SevFile implements FileOperations {
  readonly name = '/dev/sev';
}

/** open("/dev/sev"). Returns the descriptor. Errors: ENODEV (there is no secure processor), EMFILE. */
export function openSevDevice(files: FileTable, psp: Psp | undefined): number {
  if (psp === undefined) throw new LinuxError('ENODEV', '/dev/sev: this machine has no secure processor');
  files.reserve();
  return files.install(new OpenFile(new SevFile()));
}

/** Whether the descriptor is one of /dev/sev. */
export function isSevDevice(files: FileTable, fd: number): boolean {
  try {
    return files.get(fd).operations instanceof SevFile;
  } catch (error) {
    if (error instanceof LinuxError) return false;
    throw error;
  }
}
