/**
 * What stands behind a mapping of a file: where its pages come from (Linux' `vm_operations_struct.fault`), and the reverse
 * map from the file's pages to the processes that map them (`address_space.i_mmap`, mm/memory.c `unmap_mapping_range`).
 *
 * A file that takes pages away (truncate, punch) does so inside `FileMappings.unmap`, so that nobody is left with a frame
 * that is gone: notifiers begin, entries go, the file drops its pages, notifiers end.
 */
import type { Pfn } from '../../base/address.ts';

/** What `PageSource.fault` answers instead of a frame. */
export const PAGE_FAULT = {
  /** VM_FAULT_SIGBUS: beyond the end of the file, or not to be mapped. */
  SIGBUS: -1,
  /** VM_FAULT_OOM */
  NO_MEMORY: -2,
  /** VM_FAULT_HWPOISON */
  HWPOISON: -3,
  /** The page is not there yet; `PageSource.pending` is settled when it is worth asking again. */
  PENDING: -4,
} as const;

export interface PageSource {
  /** Every mapping of these pages. The address space adds and removes; the source unmaps. */
  readonly mappings: FileMappings;
  /**
   * The frame of page `index` (from the start of the file), which the source keeps until it unmaps that page; or a
   * PAGE_FAULT code. Does not throw.
   */
  fault(index: number): Pfn | number;
  /** Set while a page is on its way, after PAGE_FAULT.PENDING. Never rejects. */
  readonly pending?: Promise<void> | undefined;
}

/** One mapping of a range of a file's pages in one address space. */
export interface FileMapping {
  readonly firstPage: number;
  /** First page after the mapping. */
  readonly endPage: number;
  /** Tells the address space's notifiers that pages [first, end) go (both inside the mapping). */
  beginUnmap(first: number, end: number): void;
  /** Removes the entries; with `cowed: 'drop'` also copies that the process wrote to (private mappings). */
  unmapPages(first: number, end: number, options: { cowed: 'keep' | 'drop' }): void;
  endUnmap(first: number, end: number): void;
}

/** All mappings of one file. */
export class FileMappings {
  readonly #mappings = new Set<FileMapping>();

  get size(): number {
    return this.#mappings.size;
  }

  add(mapping: FileMapping): void {
    this.#mappings.add(mapping);
  }

  remove(mapping: FileMapping): void {
    this.#mappings.delete(mapping);
  }

  /**
   * Unmaps pages [first, end) everywhere and calls `drop`, in which the file gives up those pages, before the notifiers hear
   * of the end. `cowed` as in `FileMapping.unmapPages`: a truncated file drops copies, a punched one keeps them.
   */
  unmap(first: number, end: number, options: { cowed: 'keep' | 'drop' }, drop: () => void): void {
    const hit: FileMapping[] = [];
    for (const mapping of this.#mappings) {
      if (mapping.firstPage < end && mapping.endPage > first) hit.push(mapping);
    }
    const each = (act: (mapping: FileMapping, from: number, to: number) => void): void => {
      for (const mapping of hit) {
        act(mapping, Math.max(first, mapping.firstPage), Math.min(end, mapping.endPage));
      }
    };
    each((mapping, from, to) => mapping.beginUnmap(from, to));
    each((mapping, from, to) => mapping.unmapPages(from, to, options));
    drop();
    each((mapping, from, to) => mapping.endUnmap(from, to));
  }
}
