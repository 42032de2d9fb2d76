/** The file descriptor behind an object of KVM (anon_inode:kvm-vm, kvm-vcpu, /dev/kvm): closing either ends both. */
import { LinuxError } from '../../base/errors.ts';
import { type FileTable, OpenFile } from '../files.ts';

export class Descriptor {
  readonly fd: number;
  readonly #files: FileTable;
  #open = true;

  /** `release` is called once, at the last close. Errors: EMFILE. */
  constructor(files: FileTable, name: string, release: () => void) {
    this.#files = files;
    this.fd = files.install(
      new OpenFile({
        name,
        release: () => {
          this.#open = false;
          release();
        },
      }),
    );
  }

  /** An ioctl on it. Errors: EBADF, when it is closed. */
  check(): void {
    if (!this.#open) throw new LinuxError('EBADF', `file descriptor ${this.fd}: closed`);
  }

  /** close(2), once. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#files.close(this.fd);
  }
}
