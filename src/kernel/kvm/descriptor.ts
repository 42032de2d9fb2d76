/** The file descriptor behind an object of KVM (anon_inode:kvm-vm, kvm-vcpu, /dev/kvm): closing either ends both. Who closed it by its number has given the number away. */
import { LinuxError } from '../../base/errors.ts';
import { type FileTable, OpenFile } from '../files.ts';

export class Descriptor {
  readonly fd: number;
  readonly #files: FileTable;
  readonly #file: OpenFile;

  /** `release` is called once, at the last close. Errors: EMFILE. */
  constructor(files: FileTable, name: string, release: () => void) {
    this.#files = files;
    this.#file = new OpenFile({ name, release });
    this.fd = files.install(this.#file);
  }

  /** An ioctl on it. Errors: EBADF, when it is closed. */
  check(): void {
    if (!this.#files.holds(this.fd, this.#file))
      throw new LinuxError('EBADF', `file descriptor ${this.fd}: closed`);
  }

  /** close(2), once: the number may stand for another file by then. */
  close(): void {
    if (this.#files.holds(this.fd, this.#file)) this.#files.close(this.fd);
  }
}
