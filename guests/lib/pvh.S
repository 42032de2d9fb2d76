# Entry by the PVH boot protocol (32-bit protected mode, no paging), so that the same ELF file runs under qemu-system as well:
# identity page tables over the first GiB, long mode, and on to _start as SoftCVM enters it.

        .section .note.Xen, "a", @note
        .long   4, 4, 18                # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   pvh_start

        .text
        .code32
        .globl  pvh_start
pvh_start:
        movl    $pvh_pdpt + 3, pvh_pml4
        movl    $pvh_pd + 3, pvh_pdpt
        movl    $pvh_pd, %edi
        movl    $0x83, %eax             # present, writable, 2 MiB
1:      movl    %eax, (%edi)
        movl    $0, 4(%edi)
        addl    $8, %edi
        addl    $0x200000, %eax
        cmpl    $pvh_pd + 4096, %edi
        jb      1b
        movl    $pvh_pml4, %eax
        movl    %eax, %cr3
        movl    $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       # EFER: LME, NXE
        rdmsr
        orl     $0x900, %eax
        wrmsr
        movl    %cr0, %eax
        andl    $~0x0c, %eax            # EM, TS
        orl     $0x80010023, %eax       # PG, WP, NE, MP, PE
        movl    %eax, %cr0
        lgdt    pvh_gdt_pointer
        ljmp    $8, $2f
        .code64
2:      movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x4000000 - 8, %esp    # 64 MiB
        xorl    %edi, %edi
        jmp     _start

        .section .rodata
        .balign 8
pvh_gdt:
        .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
pvh_gdt_pointer:
        .word   23
        .long   pvh_gdt

        .bss
        .balign 4096
pvh_pml4: .skip 4096
pvh_pdpt: .skip 4096
pvh_pd:   .skip 4096

        .section .note.GNU-stack, "", @progbits
